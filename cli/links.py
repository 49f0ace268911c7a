"""`links`: which frame fits which carrier in one message."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..wire import carriers, tags
from . import console, vectors
from .options import JsonOption

_MAX_VALUES = 100_000
_NO = "-"


def links(
    what: Annotated[
        str, typer.Argument(metavar="N|BUNDLE", help="A number of values, or a bundle or basis.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show which frame fits which carrier in one message, and how long LoRa is on the air for it.

    A LoRaWAN cell that fits says the time on air, in milliseconds by Semtech's formula. docs/SHIPPING.md has
    the sources. A last day takes 2 bytes more.

    \b
    Examples:
      tinylora-edge links 13
      tinylora-edge links out/demo
    """
    values = _count(what)
    sizes = carriers.frame_sizes(values)
    if as_json:
        console.print_json(
            {
                "values": values,
                "frames": [
                    {"dtype": dtype, "tag": tags.NAMES[kind], "bytes": size}
                    for (dtype, kind), size in sizes.items()
                ],
                "carriers": [_record(carrier, sizes) for carrier in carriers.CARRIERS],
            }
        )
        return
    everything = list(sizes.items())
    whole = _table(values, everything)
    dtypes = list(dict.fromkeys(dtype for dtype, _ in sizes))
    parts = [[frame for frame in everything if frame[0][0] == dtype] for dtype in dtypes]
    if console.fits(whole):
        console.print_table(whole)
    elif all(console.fits(_table(values, part)) for part in parts):
        for number, part in enumerate(parts):
            if number:
                console.say()
            console.print_table(_table(values, part))
    else:
        _say_by_carrier(values, sizes, dtypes)


def _table(values: int, frames: list[tuple[tuple[str, int], int]]) -> Table:
    """Return the table of some frames, a column each."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(f"{console.counted(values, 'value')}; times in ms", no_wrap=True)
    table.add_column("bytes", justify="right")
    for (dtype, kind), size in frames:
        table.add_column(f"{dtype}\n{tags.NAMES[kind]}\n{size}", justify="right", no_wrap=True)
    for carrier in carriers.CARRIERS:
        cells = (_cell(carrier, size) for _, size in frames)
        table.add_row(carrier.name, str(carrier.payload), *cells)
    return table


def _say_by_carrier(values: int, sizes: dict[tuple[str, int], int], dtypes: list[str]) -> None:
    """Print what fits carrier by carrier, for a terminal that is too narrow for a table of them."""
    kinds = list(dict.fromkeys(kind for _, kind in sizes))
    console.prose(f"{console.counted(values, 'value')}; times in ms")
    for carrier in carriers.CARRIERS:
        console.say()
        console.prose(f"{carrier.name}: {carrier.payload} bytes")
        table = Table(box=None, padding=(0, 1, 0, 0))
        table.add_column(min_width=6)
        for kind in kinds:
            table.add_column(tags.NAMES[kind], justify="right", min_width=7)
        rows = [(dtype, [_cell(carrier, sizes[dtype, kind]) for kind in kinds]) for dtype in dtypes]
        for dtype, cells in rows:
            if set(cells) != {_NO}:
                table.add_row(f"  {dtype}", *cells)
        if table.row_count:
            console.print_table(table)
        else:
            console.say("  too small for any frame")


def _count(what: str) -> int:
    if not what.isdecimal():
        return vectors.find_basis(Path(what)).size
    if not 1 <= int(what) <= _MAX_VALUES:
        raise typer.BadParameter(f"a micro-vector has 1 to {_MAX_VALUES:,} values", param_hint="N")
    return int(what)


def _cell(carrier: carriers.Carrier, size: int) -> str:
    if size > carrier.payload:
        return _NO
    milliseconds = carriers.carrier_airtime(carrier, size)
    return "fits" if milliseconds is None else f"{milliseconds:,.0f}"


def _record(carrier: carriers.Carrier, sizes: dict[tuple[str, int], int]) -> dict[str, Any]:
    return {
        "carrier": carrier.name,
        "bytes": carrier.payload,
        "capacity": carrier.capacity,
        "encoding": carrier.encoding,
        "source": carrier.source,
        "fits": [
            {
                "dtype": dtype,
                "tag": tags.NAMES[kind],
                "bytes": size,
                "fits": size <= carrier.payload,
                "airtime_ms": carriers.carrier_airtime(carrier, size) if size <= carrier.payload else None,
            }
            for (dtype, kind), size in sizes.items()
        ],
    }
