"""Links: what a message of each holds, and how many a frame takes; and the picture that is one, a QR code.

`links.toml` has the sizes: what is left for a frame after the link's own framing; LoRaWAN's is without MAC
commands.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FrameError, MissingExtraError
from ..wire import frame, tags, text


class Link(NamedTuple):
    """One kind of message.

    Attributes:
        name: of the link, with the direction where it matters.
        size: the longest frame in bytes that one message takes.
        note: where the size is from.
    """

    name: str
    size: int
    note: str


class FrameSize(NamedTuple):
    """The length of a frame in bytes, by the dtype of its values and its tag."""

    dtype: str
    tag: str
    size: int


_TABLE = tomllib.loads(Path(__file__).with_name("links.toml").read_text("utf-8"))
LINKS = tuple(Link(name, size, note) for note, sizes in _TABLE.items() for name, size in sizes.items())


def frame_sizes(values: int) -> list[FrameSize]:
    """Return the lengths of frames of so many values (fp16 is as bf16). A last day takes 2 bytes more."""
    return [
        FrameSize(dtype, tags.NAMES[kind], frame.frame_bytes(values, dtype, kind))
        for dtype in ("fp32", "bf16", "int8")
        for kind in tags.SIZES
    ]


def fitting(link: Link, values: int) -> list[FrameSize]:
    """Return the frames of so many values that one message takes."""
    return [found for found in frame_sizes(values) if found.size <= link.size]


def messages(link: Link, size: int) -> int:
    """Return how many messages a frame of so many bytes takes, where an app cuts it into parts."""
    return -(-size // link.size)


def qr_code(data: bytes, otherwise: str) -> Any:
    """Return segno's QR code of a frame's text, `tinylora:` before it.

    Raises:
        FrameError: it is too long; `otherwise` says what to do.
        MissingExtraError: segno is not installed.
    """
    try:
        import segno
    except ImportError:
        raise MissingExtraError("a QR code", "segno", "ship") from None
    try:
        return segno.make_qr(text.encode(data, scheme=True), error="L", boost_error=False, mode="byte")
    except segno.DataOverflowError:
        raise FrameError(f"{len(data)} bytes fit no QR code: {otherwise}") from None
