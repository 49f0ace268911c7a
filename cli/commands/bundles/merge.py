"""`merge`: join the parts of an export into a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ...shared import console
from ...shared.options import JsonOption
from .export_report import print_report


def merge(
    parts: Annotated[
        list[Path], typer.Argument(metavar="PART...", help="The files of all parts, in any order.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="BUNDLE", help="The directory to write. It must not exist."),
    ],
    base: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The GGUF that is deployed. [default: where the parts found it]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Join the parts of an export, made by `export --part I/N`, into a bundle.

    The bundle is that of an export in one piece, with the same digest. Parts need not have been made on
    one machine, nor does the base have to lie where they found it.

    \b
    Example:
      tinylora-edge merge qwen.part-*-of-3 -o qwen
    """
    from ....exporters import merge as join

    start = time.perf_counter()
    with console.working(f"joining {console.counted(len(parts), 'part')}"):
        report = join(parts, output, base=base)
    print_report(
        console.counted(len(parts), "part"),
        report,
        report.provenance,
        time.perf_counter() - start,
        as_json,
    )
