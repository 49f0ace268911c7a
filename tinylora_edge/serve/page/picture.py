"""The picture of a frame: a QR code as SVG, which a phone's camera reads."""

from __future__ import annotations

import io

from ...errors import FrameError, MissingExtraError
from ...wire import text


def draw_qr(frame: bytes) -> bytes:
    """Return the QR code of a frame's text, `tinylora:` before it, as an SVG document: black on white.

    Raises:
        MissingExtraError: `segno` is not installed.
        FrameError: no QR code holds that much.
    """
    try:
        import segno
    except ImportError:
        raise MissingExtraError("a QR code", "segno", "ship") from None
    try:
        code = segno.make_qr(text.encode(frame, scheme=True), error="M", boost_error=False, mode="byte")
    except segno.DataOverflowError:
        raise FrameError(f"{len(frame)} bytes fit no QR code: save the vector as a file") from None
    out = io.BytesIO()
    code.save(out, kind="svg", scale=8, dark="#000", light="#fff", title="A vector as a QR code")
    return out.getvalue()
