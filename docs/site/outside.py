"""A hook of mkdocs: documents outside of docs/ become pages too, and links between all of them stay true."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {  # document in the repository -> page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
    "recipes/README.md": "recipes.md",
    "examples/browser/README.md": "browser.md",
    "native/README.md": "native.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"(\]\()([^)\s#:]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents outside of docs/."""
    for document, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / document)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Make each link to a document one to its page; of a file that has no page, the name stays.

    The page of the API, which is short in a checkout, has all that its modules say of themselves.
    """
    place = page.file.src_uri
    if place == "reference/api.md":
        head, *faces = re.split(r"^## ", markdown, flags=re.M)
        parts = (f"::: {face.split()[0]}\n    options:\n      heading_level: 2\n" for face in faces)
        markdown = "\n".join([head, *parts])
    document = next((name for name, other in PAGES.items() if other == place), f"docs/{place}")
    folder = posixpath.dirname(document)

    def lead(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        found = PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if found is None or files.get_file_from_path(found) is None:
            return match[0]
        return match[1] + posixpath.relpath(found, posixpath.dirname(place) or ".")

    markdown = _LINK.sub(lead, markdown)
    # What is left outside, code and folders say, is not on the site: its name stays, without a link.
    return re.sub(r"\[([^\]]+)\]\(((?:\.\./)*[\w./-]+)\)", lambda m: _plain(m, place, files), markdown)


def _plain(match: re.Match[str], place: str, files: Files) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(place), match[2]))
    return match[0] if files.get_file_from_path(target) is not None else match[1]
