"""`models`: what the catalog has, and which of it is on this machine."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from .. import ExportError
from . import console, downloads
from .options import JsonOption

if TYPE_CHECKING:
    from ..exporters.hub import CatalogModel

_WIDTH = 48  # of the quantizations in a table
_GLUE = "\0"  # in the place of a space where no line is to be broken


def models(
    as_json: JsonOption = False,
) -> None:
    """List the models that have short names, with their sizes. Nothing is asked of the hub.

    What is in the cache of the hub already is marked with *. Models of your own: docs/YOUR_MODEL.md.

    \b
    Examples:
      tinylora-edge models
      tinylora-edge models --json
    """
    from ..exporters.hub import load_catalog, user_file

    records = [_record(model) for model in load_catalog().values()]
    if as_json:
        console.print_json(records)
        return
    rows = [_row(record) for record in records]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("name", "parameters", "--quant, the default first", "licence"):
        table.add_column(title, no_wrap=True)
    for name, parameters, sizes, licence in rows:
        table.add_row(*map(Text, (name, parameters, _wrapped(sizes, _WIDTH), licence)))
    console.print_table(table)
    console.say()
    if any(record["cached"] for record in records):
        console.say("* in the cache")
    try:
        own = str(user_file())
    except ExportError as error:
        own = f"none, since {error}"
    console.prose(f"your own: {own}; any org/name on the hub, or local path, works as well")
    console.next_command("export", "qwen2.5-0.5b")


def _wrapped(sizes: list[str], columns: int) -> str:
    """Return sizes in lines, each size whole."""
    text = ", ".join(size.replace(" ", _GLUE) for size in sizes)
    return textwrap.fill(text, columns, break_on_hyphens=False).replace(_GLUE, " ")


def _record(model: CatalogModel) -> dict[str, Any]:
    from ..exporters.hub import cached_quants

    return {
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


def _row(record: dict[str, Any]) -> tuple[str, str, list[str], str]:
    quants, default, cached = record["quants"], record["default"], record["cached"]
    ordered = [default, *(quant for quant in (*quants, *cached) if quant != default)]
    sizes = []
    for quant in dict.fromkeys(ordered):
        size = f" {downloads.gigabytes(quants[quant])}" if quant in quants else ""
        sizes.append(f"{quant}{size}{'*' if quant in cached else ''}")
    gated = " (weights gated)" if record["gated"] else ""
    return (
        record["name"],
        _parameters(record["parameters"]),
        sizes,
        f"{record['license'] or 'not stated'}{gated}",
    )


def _parameters(count: int | None) -> str:
    if count is None:
        return "not stated"
    return f"{count / 1e9:.1f} B" if count >= 950_000_000 else f"{count / 1e6:.0f} M"
