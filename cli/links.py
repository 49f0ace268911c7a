"""`links`: which frame fits which link in one message."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ..limits import VALUES
from ..shipping.links import LINKS, fitting, frame_sizes
from . import console
from .options import JsonOption


def links(
    values: Annotated[
        int,
        typer.Argument(metavar="N", min=1, max=VALUES, help="Numbers of a vector: 13, 840 or 13440, say."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show which frame fits which link in one message: the strongest tag that has room.

    A last day takes 2 bytes more.

    \b
    Example:
      tinylora-edge links 13
    """
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
