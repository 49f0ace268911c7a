"""Whether each link of the site that `make site` builds leads to a file, and to a place in it.

python docs/site/links.py out/site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and which places it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places = {""}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what an element names."""
        named = dict(attrs)
        self.links += [link for name in ("href", "src") if (link := named.get(name))]
        self.places |= {place for name in ("id", "name") if (place := named.get(name))}


def main(site: Path) -> None:
    """Print each dead link, and fail where there is one."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    dead, count = [], 0
    for path, page in pages.items():
        if path.name == "404.html":  # its links are from the root of a host
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            found = pages.get(target / "index.html" if target.is_dir() else target)
            if not target.exists() or (found and unquote(parts.fragment) not in found.places):
                dead.append(f"{path.relative_to(site.resolve())}: {link}")
    if dead or not count:
        sys.exit("\n".join(["make: links of the site that lead nowhere:", *dead]))
    print(f"make: {count} links of {len(pages)} pages lead somewhere")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
