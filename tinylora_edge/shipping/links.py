"""Links: how many bytes a message of each holds, how many messages a frame takes; and QR codes.

`links.toml` has the sizes: what is left for a frame after the link's own framing; LoRaWAN's is without MAC
commands.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FrameError, MissingExtraError
from ..wire import text


class Link(NamedTuple):
    """One kind of message: the longest frame in bytes that one takes."""

    name: str
    size: int


_TABLE = tomllib.loads(Path(__file__).with_name("links.toml").read_text("utf-8"))
LINKS = tuple(Link(*each) for sizes in _TABLE.values() for each in sizes.items())


def messages(link: Link, size: int) -> int:
    """Return how many messages a frame of so many bytes takes, where an app cuts it into parts."""
    return -(-size // link.size)


def qr_code(data: bytes) -> Any:
    """Return segno's QR code of a frame's text, `tinylora:` before it.

    Raises:
        FrameError: it is too long.
        MissingExtraError: segno is not installed.
    """
    try:
        import segno
    except ImportError:
        raise MissingExtraError("a QR code", "segno", "ship") from None
    try:
        return segno.make_qr(text.encode(data, scheme=True), error="L", boost_error=False, mode="byte")
    except segno.DataOverflowError:
        most = max(link.size for link in LINKS if link.name.startswith("QR code"))
        raise FrameError(
            f"{len(data):,} bytes fit no QR code, which takes {most:,}: send the file, or a vector of "
            "fewer numbers"
        ) from None
