"""`links`: which frame fits which carrier in one message."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ....wire import carriers, tags
from ...shared import console, vectors
from ...shared.options import JsonOption

_MAX_VALUES = 100_000


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
      tinylora-edge links smollm2
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
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(f"{values} values; times in ms", no_wrap=True)
    table.add_column("bytes", justify="right")
    for (dtype, kind), size in sizes.items():
        table.add_column(f"{dtype}\n{tags.NAMES[kind]}\n{size}", justify="right", no_wrap=True)
    for carrier in carriers.CARRIERS:
        table.add_row(carrier.name, str(carrier.payload), *(_cell(carrier, size) for size in sizes.values()))
    console.print_table(table)


def _count(what: str) -> int:
    if not what.isdecimal():
        return vectors.find_basis(Path(what)).size
    if not 1 <= int(what) <= _MAX_VALUES:
        raise typer.BadParameter(f"a micro-vector has 1 to {_MAX_VALUES:,} values", param_hint="N")
    return int(what)


def _cell(carrier: carriers.Carrier, size: int) -> str:
    if size > carrier.payload:
        return "-"
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
