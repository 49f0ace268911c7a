"""How many bytes of a frame fit into a message of a link, and QR codes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..errors import FrameError, MissingExtraError
from ..wire import text

_TABLE = tomllib.loads(Path(__file__).with_name("links.toml").read_text("utf-8"))
LINKS: dict[str, int] = {name: size for sizes in _TABLE.values() for name, size in sizes.items()}
"""Link -> bytes of the longest frame that one message takes; for LoRaWAN, a message without MAC commands."""


def qr_code(data: bytes) -> Any:
    """Return a frame as text in a QR code, of the class that segno has for it. FrameError: it is too long.
    MissingExtraError: segno is not installed."""
    try:
        import segno
    except ImportError:
        raise MissingExtraError("a QR code", "segno", "ship") from None
    try:
        return segno.make_qr(text.encode(data, scheme=True), error="L", boost_error=False, mode="byte")
    except segno.DataOverflowError:
        most = max(size for link, size in LINKS.items() if link.startswith("QR code"))
        raise FrameError(
            f"{len(data):,} bytes are too many for a QR code, which takes {most:,}: send the file"
        ) from None
