"""QR codes of vectors, drawn on a terminal or into a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.text import Text

from ..errors import MissingExtraError
from ..wire import text
from . import console

_PIXELS = 8  # a module's width in a picture: sharp on a phone held 20 cm away


def make(data: bytes) -> Any:
    """Return the QR code of a vector, as segno has it: `tinylora:` and its base64url text.

    Raises:
        MissingExtraError: `segno` is not installed.
        CommandError: no QR code holds that much.
    """
    try:
        import segno
    except ImportError:
        raise MissingExtraError("a QR code", "segno", "ship") from None
    try:
        return segno.make_qr(text.encode(data, scheme=True), error="M", boost_error=False, mode="byte")
    except segno.DataOverflowError:
        raise console.CommandError(
            f"{len(data)} bytes fit no QR code: ship the vector as a file, or in int8 (--dtype int8)"
        ) from None


def picture(code: Any, name: str) -> bytes:
    """Return a QR code as a PNG or SVG, by the end of the file's name.

    Raises:
        CommandError: it ends otherwise.
    """
    kind = Path(name).suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise console.CommandError(f"{name} is no name for a QR code's picture: let it end in .png or .svg")
    out = io.BytesIO()
    code.save(out, kind=kind, scale=_PIXELS)
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
