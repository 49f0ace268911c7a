"""`vector text`: a vector as text, for what carries no bytes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from ....wire import text
from ...shared import console, vectors
from ...shared.options import ForceOption, OutputOption, VectorArgument


class TextForm(StrEnum):
    """Texts of a vector."""

    base64url = "base64url"
    hex = "hex"


def as_text(
    source: VectorArgument,
    form: Annotated[TextForm, typer.Option(help="Which text.")] = TextForm.base64url,
    output: OutputOption = vectors.STREAM,
    scheme: Annotated[bool, typer.Option("--scheme", help="Put tinylora: before it, for a link.")] = False,
    force: ForceOption = False,
) -> None:
    """Write a vector as text, for an SMS, a chat or a DNS record. Every command reads it back.

    \b
    Example:
      tinylora-edge vector text v1.bin
    """
    data = vectors.read(source)
    vectors.header(data)
    line = text.encode(data, form.value, scheme=scheme)
    if output == vectors.STREAM:
        console.say(line)
        return
    vectors.check_target(output, force=force)
    vectors.write(output, f"{line}\n".encode())
    console.prose(f"wrote {output}: {len(data)} bytes in {len(line)} characters of {form.value}")
