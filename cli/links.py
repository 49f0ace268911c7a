"""`links`: which frame fits which link in one message."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ..limits import VALUES
from ..shipping.links import LINKS, fitting, frame_sizes, messages
from . import console
from .options import JsonOption


def links(
    values: Annotated[int, typer.Argument(metavar="N", min=1, max=VALUES, help="Numbers of a vector.")],
    as_json: JsonOption = False,
) -> None:
    """Show which frame fits which link in one message: the strongest tag that has room.

    Where none has, it is how many messages the signed frame takes in parts. A last day takes 2 bytes more.

    \b
    Examples:
      tinylora-edge links 13
      tinylora-edge links 840
    """
    frames = frame_sizes(values)
    signed = {found.dtype: found for found in frames}  # the last of each
    parts = {link: {dtype: messages(link, found.size) for dtype, found in signed.items()} for link in LINKS}
    if as_json:
        fits = {link: [found._asdict() for found in fitting(link, values)] for link in LINKS}
        links = [link._asdict() | {"fits": fits[link], "messages": parts[link]} for link in LINKS]
        console.print_json({"values": values, "frames": [f._asdict() for f in frames], "links": links})
        return
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(console.counted(values, "value"), no_wrap=True)
    table.add_column("bytes", justify="right")
    for dtype in signed:
        each = " / ".join(str(found.size) for found in frames if found.dtype == dtype)
        table.add_column(f"{dtype}\n{each}", no_wrap=True)
    for link in LINKS:
        strongest = {dtype: f"in {count:,}" for dtype, count in parts[link].items()}
        strongest |= {found.dtype: found.tag for found in fitting(link, values)}
        table.add_row(link.name, str(link.size), *strongest.values())
    console.print_table(table)
