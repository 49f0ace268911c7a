"""`links`: which frame fits which link in one message."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..shipping.links import LINKS, fitting, frame_sizes
from . import console, vectors
from .options import JsonOption

_MAX_VALUES = 100_000


def links(
    what: Annotated[str, typer.Argument(metavar="N|BUNDLE", help="A number of values, or a bundle.")],
    as_json: JsonOption = False,
) -> None:
    """Show which frame fits which link in one message: the strongest tag that has room.

    A last day takes 2 bytes more.

    \b
    Examples:
      tinylora-edge links 13
      tinylora-edge links out/demo
    """
    if what.isdecimal() and not 1 <= int(what) <= _MAX_VALUES:
        raise typer.BadParameter(f"a micro-vector has 1 to {_MAX_VALUES:,} values", param_hint="N")
    values = int(what) if what.isdecimal() else vectors.find_basis(Path(what)).size
    if as_json:
        fits = {link: [found._asdict() for found in fitting(link, values)] for link in LINKS}
        links = [link._asdict() | {"fits": found} for link, found in fits.items()]
        frames = [found._asdict() for found in frame_sizes(values)]
        console.print_json({"values": values, "frames": frames, "links": links})
        return
    sizes: dict[str, list[str]] = {}
    for found in frame_sizes(values):
        sizes.setdefault(found.dtype, []).append(str(found.size))
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(console.counted(values, "value"), no_wrap=True)
    table.add_column("bytes", justify="right")
    for dtype, each in sizes.items():
        table.add_column(f"{dtype}\n{' / '.join(each)}", no_wrap=True)
    for link in LINKS:
        strongest = {found.dtype: found.tag for found in fitting(link, values)}
        table.add_row(link.name, str(link.size), *(strongest.get(dtype, "-") for dtype in sizes))
    console.print_table(table)
