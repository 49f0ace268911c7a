"""The dissection of a frame: its bytes, field by field, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...wire import tags
from ...wire.frame import HEADER_BYTES
from .. import vectors
from .results import Framed

if TYPE_CHECKING:
    from ... import Basis


def dissect(frame: bytes, basis: Basis) -> Framed:
    """Return what a frame with a checksum holds.

    Raises:
        VectorError: it does not belong to the basis, or is damaged.
    """
    from ... import MicroVector

    vector = MicroVector.from_bytes(frame, basis)
    return Framed(
        hex=frame.hex(),
        bytes=len(frame),
        values=vector.values.reshape(-1).tolist(),
        parts=_parts(frame),
    )


def lines(framed: Framed) -> list[str]:
    """Return the bytes and their meaning as lines for reading."""
    parts = (
        f"  {data if len(data) <= 8 else data[:8] + '..':<10}  {meaning}" for data, meaning in framed.parts
    )
    return [framed.hex, *parts]


def _parts(frame: bytes) -> list[tuple[str, str]]:
    header = vectors.header(frame)
    begin, tag = HEADER_BYTES[header["version"]], len(frame) - tags.SIZES[tags.CRC32]
    return [
        (frame[:1].hex(), f"version {header['version']}, {header['dtype']}, {header['tag']}"),
        (frame[1:5].hex(), "the basis that it belongs to"),
        (frame[5:7].hex(), f"sequence {header['sequence']}"),
        *([(frame[7:9].hex(), f"the last day: {header['until']}")] if "until" in header else []),
        (frame[begin:tag].hex(), f"{header['count']} values, {tag - begin} bytes"),
        (frame[tag:].hex(), "checksum, over the basis's whole digest and the stream's name too"),
    ]
