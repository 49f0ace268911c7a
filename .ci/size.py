"""How large the house is: `python .ci/size.py` prints a line a count.

Lines are those of files that git tracks. Words are those of every Markdown file.
"""

from __future__ import annotations

import ast
import re
import subprocess
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


def main() -> None:
    """Print the counts."""
    product = tracked(".py", *PRODUCT)
    documents = tracked(".md")
    same = twice(product)
    counts = {
        "product, lines of Python": lines(product),
        "product, files": len(product),
        "tests, lines of Python": lines(tracked(".py", "tests")),
        "benchmarks, lines of Python": lines(tracked(".py", "benchmarks")),
        "documents, words": sum(len(path.read_text("utf-8").split()) for path in documents),
        "commands": len(commands()),
        "class names twice": len(same),
    }
    for name, count in counts.items():
        print(f"{name:28} {count:8,}")
    if same:
        print(f"twice: {', '.join(same)}")


if __name__ == "__main__":
    main()
