"""`models`: the models that have short names."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from . import console
from .options import JsonOption


def models(as_json: JsonOption = False) -> None:
    """List the models that have short names, with their sizes. Nothing is asked of the hub.

    Any org/name on the hub works as well.

    \b
    Example:
      tinylora-edge models
    """
    from ..exporters.hub import load_catalog

    catalog = load_catalog().values()
    if as_json:
        console.print_json([asdict(model) for model in catalog])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("name", "parameters", "licence", "--quant, the default first"):
        table.add_column(title, no_wrap=title == "name")
    for model in catalog:
        quants = dict.fromkeys([model.default, *model.quants] if model.default else model.quants)
        sizes = ", ".join(f"{quant} {console.megabytes(model.quants[quant])}" for quant in quants)
        licence = f"{model.license}{' (weights gated)' if model.gated else ''}"
        table.add_row(*map(Text, (model.name, f"{model.parameters / 1e9:.2g} B", licence, sizes)))
    console.print_table(table)
    console.next_command("export", "qwen2.5-0.5b")
