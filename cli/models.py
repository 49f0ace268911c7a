"""`models`: what the catalog has, and which of it is on this machine."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from .. import ExportError
from . import console
from .options import JsonOption


def models(as_json: JsonOption = False) -> None:
    """List the models that have short names, with their sizes. Nothing is asked of the hub.

    What is in the cache of the hub already is marked with *. Any org/name on the hub works as well.

    \b
    Example:
      tinylora-edge models
    """
    from ..exporters.hub import cached_quants, load_catalog, user_file

    records: list[dict[str, Any]] = [
        {
            "name": model.name,
            "parameters": model.parameters,
            "license": model.license,
            "gated": model.gated,
            "gguf": model.gguf,
            "weights": model.weights,
            "default": model.default,
            "quants": model.quants,
            "cached": cached_quants(model),
            "catalog": str(model.origin),
        }
        for model in load_catalog().values()
    ]
    if as_json:
        console.print_json(records)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("name", "parameters", "licence", "--quant, the default first"):
        table.add_column(title, no_wrap=title == "name")
    for record in records:
        quants, cached, count = record["quants"], record["cached"], record["parameters"]
        sizes = []
        for quant in dict.fromkeys((record["default"], *quants, *cached)):
            size = f" {console.megabytes(quants[quant])}" if quant in quants else ""
            sizes.append(f"{quant}{size}{'*' if quant in cached else ''}")
        gated = " (weights gated)" if record["gated"] else ""
        parameters = "not stated" if count is None else f"{count / 1e9:.2g} B"
        cells = (record["name"], parameters, f"{record['license'] or 'not stated'}{gated}", ", ".join(sizes))
        table.add_row(*map(Text, cells))
    console.print_table(table)
    try:
        own = str(user_file())
    except ExportError as error:
        own = f"none, since {error}"
    console.prose(f"your own: {own}")
    console.next_command("export", "qwen2.5-0.5b")
