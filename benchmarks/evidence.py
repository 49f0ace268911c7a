"""Writes the tables and figures of the documents, which are made of the records.

Each block of a document between `<!-- evidence: NAME -->` and `<!-- end -->` is one of `BLOCKS`. Without
options, documents and figures are written again, in seconds. With `--check` nothing is written, and a
difference is an error; that needs no matplotlib.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from _figures import EVIDENCE
from _tables import BLOCKS

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENTS = [DOCS / f"{name}.md" for name in ("EVIDENCE", "FLEET", "INSTALL", "MODELS")] + [
    DOCS.parent / "README.md"
]
FIGURES = DOCS / "figures"


def rebuilt(text: str) -> str:
    """Return a document with its blocks made again.

    Raises:
        ValueError: a block has a name that is not known.
    """

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise ValueError(f"there is no block {name}: one of {', '.join(BLOCKS)}")
        return f"<!-- evidence: {name} -->\n\n{BLOCKS[name]()}\n\n<!-- end -->"

    return re.sub(r"<!-- evidence: (?P<name>\w+) -->.*?<!-- end -->", block, text, flags=re.DOTALL)


def stale() -> list[Path]:
    """Return the files that differ from what the records say."""
    found = [page for page in DOCUMENTS if rebuilt(text := page.read_text("utf-8")) != text]
    return found + [
        FIGURES / f"{name}.svg"
        for name, figure in EVIDENCE.items()
        if not (file := FIGURES / f"{name}.svg").exists() or not figure.is_in(file.read_text("utf-8"))
    ]


def write() -> None:
    """Write the documents and the figures again, and print the blocks."""
    for page in DOCUMENTS:
        page.write_text(rebuilt(page.read_text("utf-8")), "utf-8")
    for name, figure in EVIDENCE.items():
        (FIGURES / f"{name}.svg").write_text(figure.svg(), "utf-8")
    for name, block in BLOCKS.items():
        print(f"\n{name}\n\n{block()}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument(
        "--check", action="store_true", help="only say whether they are as the records say"
    )
    if not arguments.parse_args().check:
        write()
        return
    if old := stale():
        names = ", ".join(path.name for path in old)
        sys.exit(f"older than the records: {names}; run this without --check")


if __name__ == "__main__":
    main()
