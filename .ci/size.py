"""How large the house is, counted, and what each count may be at most.

    python .ci/size.py          a line a count; exit code 1 where one is over its bound

Lines are those of files that git tracks. Words are those of every Markdown file.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = ("tinylora_edge", "exporters", "runtime", "cli")


def tracked(pattern: str, *folders: str) -> list[Path]:
    """Return the tracked files under folders whose names end so; links are left out."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", *folders]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for name in names if name.endswith(pattern) and (path := ROOT / name).is_file()]


def lines(paths: list[Path]) -> int:
    """Return how many lines files have together."""
    return sum(len(path.read_text("utf-8").splitlines()) for path in paths)


def twice(paths: list[Path]) -> list[str]:
    """Return the names that more than one class of the product has."""
    trees = (ast.parse(path.read_text("utf-8")) for path in paths)
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return [name for name, count in names.items() if count > 1]


def commands() -> list[str]:
    """Return the names under which the application has commands."""
    text = (ROOT / "cli/app.py").read_text("utf-8")
    return re.findall(r"\"([a-z]+)\": [a-z]", text)


def main() -> int:
    """Print the counts."""
    product = tracked(".py", *PRODUCT)
    documents = tracked(".md")
    same = twice(product)
    counts = {
        "product, lines of Python": (lines(product), 24_521),
        "product, files": (len(product), None),
        "tests, lines of Python": (lines(tracked(".py", "tests")), 23_089),
        "documents, words": (sum(len(path.read_text("utf-8").split()) for path in documents), 20_305),
        "commands": (len(commands()), 18),
        "class names twice": (len(same), 0),
    }
    for name, (count, most) in counts.items():
        print(f"{name:28} {count:8,}" + (f"   at most {most:,}" if most is not None else ""))
    over = [name for name, (count, most) in counts.items() if most is not None and count > most]
    if same:
        print(f"twice: {', '.join(same)}")
    if over:
        print(f"size: over the bound: {', '.join(over)}", file=sys.stderr)
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
