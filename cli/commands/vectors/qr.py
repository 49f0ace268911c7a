"""`vector qr`: a vector as a QR code."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from ...shared import console, qr_image, vectors
from ...shared.options import ForceOption, JsonOption, VectorArgument


class Correction(StrEnum):
    """Error correction of a QR code."""

    L = "L"
    M = "M"
    Q = "Q"
    H = "H"


def qr(
    source: VectorArgument,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="PNG", help="Write a picture instead.")
    ] = None,
    correction: Annotated[
        Correction, typer.Option(help="Error correction: L, M, Q and H survive a loss of 7, 15, 25 and 30 %.")
    ] = Correction.M,
    binary: Annotated[
        bool,
        typer.Option("--binary", help="The bytes themselves: a smaller code, that needs a reader for bytes."),
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw a vector as a QR code, on the terminal or as a PNG. Every command reads the picture back.

    The code holds tinylora: and the base64url text, which any camera reads.

    \b
    Examples:
      tinylora-edge vector qr v1.bin
      tinylora-edge vector qr v1.bin -o v1.png --correction Q
    """
    if as_json and output in (None, vectors.STREAM):
        raise typer.BadParameter(
            "stdout carries the code: pass -o FILE to have a report", param_hint="--json"
        )
    data = vectors.read(source)
    vectors.header(data)
    if output is not None:
        vectors.check_target(output, force=force)
    code = qr_image.make(data, level=correction.value, binary=binary)
    if output is None:
        console.stdout().print(qr_image.drawn(code), soft_wrap=True)
        return
    vectors.write(output, qr_image.png(code))
    if output == vectors.STREAM:
        return
    side = code.symbol_size(border=0)[0]
    if as_json:
        console.print_json(
            {
                "picture": output,
                "bytes": len(data),
                "version": code.version,
                "correction": correction.value,
                "modules": side,
                "content": "bytes" if binary else "text",
            }
        )
        return
    console.prose(f"wrote {output}: {len(data)} bytes, QR code {code.designator}, {side} x {side} modules")
