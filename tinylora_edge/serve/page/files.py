"""The files that a browser loads: the page itself, its style and its modules, with what they may do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

PAGE = "index.html"
"""The file that is the page."""

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Ending of a name -> type of such a file."""

# Nothing from anywhere else, nothing inline, in nobody's frame. The QR code is an image made of a blob.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every file."""


@cache
def read_files() -> Mapping[str, tuple[bytes, str]]:
    """Return the content and the type of each file, by its name."""
    found = {}
    for entry in files(__package__).iterdir():
        kind = TYPES.get("." + entry.name.rpartition(".")[2])
        if kind is not None:
            found[entry.name] = entry.read_bytes(), kind
    return found
