"""QR codes of vectors: drawn on a terminal or into a PNG, and read from a picture."""

from __future__ import annotations

import io
from typing import Any

from rich.text import Text

from ...errors import FrameError, MissingExtraError
from ...limits import PICTURE_PIXELS, PICTURE_SIDE
from ...wire import text
from . import console

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"

_LEAST = 64  # bytes: no picture is shorter, and a raw payload may begin with any three

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits a colour, or less
_PIXELS = 8  # a module's width in a PNG: sharp on a phone held 20 cm away


def make(data: bytes, *, level: str = "M", binary: bool = False) -> Any:
    """Return the QR code of a vector, as segno has it: of its text with the scheme, or of the bytes alone.

    Raises:
        MissingExtraError: `segno` is not installed.
        CommandError: no QR code holds that much.
    """
    try:
        import segno
    except ImportError:
        raise MissingExtraError("a QR code", "segno", "ship") from None
    content = data if binary else text.encode(data, scheme=True)
    try:
        return segno.make_qr(content, error=level, boost_error=False, mode="byte")
    except segno.DataOverflowError:
        raise console.CommandError(
            f"{len(data)} bytes fit no QR code with error correction {level}: ship the vector as a file"
        ) from None


def png(code: Any) -> bytes:
    """Return a QR code as a PNG."""
    out = io.BytesIO()
    code.save(out, kind="png", scale=_PIXELS)
    return out.getvalue()


def drawn(code: Any) -> Text:
    """Return a QR code in half blocks: black on white on a terminal, whatever its colours."""
    rows = [list(row) for row in code.matrix_iter(border=2)]
    rows += [[0] * len(rows[0])] * (len(rows) % 2)
    halves = {(0, 0): " ", (0, 1): "▄", (1, 0): "▀", (1, 1): "█"}
    lines = (
        "".join(halves[bool(top), bool(low)] for top, low in zip(*pair, strict=True))
        for pair in zip(rows[::2], rows[1::2], strict=True)
    )
    return Text("\n".join(lines), style="#000000 on #ffffff")


def is_picture(data: bytes) -> bool:
    """Tell whether bytes are a picture, and so no vector: no frame begins like one."""
    return len(data) >= _LEAST and data.startswith((PNG, JPEG))


def read(picture: bytes) -> bytes:
    """Return the bytes of the vector in a picture of one QR code.

    Raises:
        MissingExtraError: `zxing-cpp` or `pillow` is not installed.
        FrameError: the picture is damaged or too large, or has no QR code, several, or one of something else.
    """
    try:
        import zxingcpp
        from PIL import Image
    except ImportError:
        raise MissingExtraError("reading a QR code", "zxing-cpp", "ship") from None
    try:
        with Image.open(io.BytesIO(picture), formats=("PNG", "JPEG")) as image:
            large = image.width * image.height > PICTURE_PIXELS
            if large or max(image.width, image.height) > PICTURE_SIDE:
                raise FrameError(
                    f"the picture has {image.width} x {image.height} pixels, and at most {PICTURE_PIXELS:,} "
                    "are searched: scale it down"
                )
            if image.mode not in _MODES or any("16" in str(tile[3]) for tile in image.tile):
                raise FrameError("the picture has 16 bits a colour or more: save it with 8")
            grey = image.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, FrameError):
            raise
        raise FrameError(f"the picture cannot be read: {error}") from None
    found = zxingcpp.read_barcodes(grey, formats=zxingcpp.BarcodeFormat.QRCode)
    if len(found) != 1:
        raise FrameError(
            f"the picture has {len(found)} readable QR codes, and exactly one was expected: take it from "
            "straight above, whole, with its white margin"
        )
    content = bytes(found[0].bytes)
    return text.decode(content) if text.is_text(content) else content
