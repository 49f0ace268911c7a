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
_WIDE = 118  # columns in which all frames have room side by side


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
    dtypes = list(dict.fromkeys(dtype for dtype, _ in sizes))
    parts = [dtypes] if console.stdout().width >= _WIDE else [[dtype] for dtype in dtypes]
    for number, part in enumerate(parts):
        if number:
            console.say()
        frames = [frame for frame in sizes.items() if frame[0][0] in part]
        console.print_table(_table(values, frames))


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
