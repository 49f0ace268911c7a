"""The report of a training run: one HTML page beside the vector, made of its record, FILE.json.

The page needs nothing else and runs nothing. The curve is drawn where matplotlib is installed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from contextlib import suppress
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ..documents import read_json
from ..system import atomic_write
from . import console, figures

_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>
:root { color-scheme: light dark }
body { margin: 2rem auto; max-width: 48rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif }
table { border-collapse: collapse } td { padding: .2rem 1rem .2rem 0; vertical-align: top }
td, code { overflow-wrap: anywhere } figure { margin: 1rem 0 } svg { background: #fff; max-width: 100% }
</style></head><body>
<h1>$title</h1>
$held_out
<h2>Training</h2>
$curve
$training
<details><summary>The frame</summary><code>$frame</code></details>
<details><summary>How to get the same</summary>$settings</details>
</body></html>
""")


def write_report(frame: Path) -> Path:
    """Write the page of a run beside its frame and record, all or nothing, and return where it lies."""
    record: dict[str, Any] = read_json(frame.with_name(f"{frame.name}.json"))
    data, result = frame.read_bytes(), record["result"]
    measured = (
        figures.rows(record) if "held_out" in record else [("held out", "not measured: eval does that")]
    )
    if "preamble" in record:
        measured.append(("behind", json.dumps(record["preamble"], ensure_ascii=False)))
    page = _PAGE.substitute(
        title=escape(f"{len(data)} bytes for {record['task']}"),
        held_out=_table(measured),
        curve=_curve(record["curve"], result["best_step"]),
        training=_table(
            [
                ("steps", f"{result['steps']}, {result['stopped']}, {record['seconds']:.0f} s"),
                ("numbers", f"{record['numbers']:,}, {record['projection']}"),
                ("kept", f"step {result['best_step']}, by prompts held back from training"),
                ("held back", f"{result['start_score']:.3f} -> {result['best_score']:.3f}"),
            ]
        ),
        frame=data.hex(),
        settings=_table(console.flat(record["options"] | {"basis": record["basis"], "tool": record["tool"]})),
    )
    path = frame.with_name(f"{frame.name}.html")
    with atomic_write(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))
    return path


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _curve(rows: list[dict[str, Any]], best: int) -> str:
    """Sampled and held-back reward by step as an `<svg>`; nothing where matplotlib is missing."""
    with suppress(ImportError):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.5), layout="constrained")
        axes = figure.subplots()
        for key, label, style in (("reward", "sampled answers", "--"), ("validation", "held back", "o-")):
            found = [(row.get("step", 0), row[key]) for row in rows if key in row]
            if found:
                axes.plot(*zip(*found, strict=True), style, label=label)
        axes.axvline(best, color="grey", linewidth=1, label="kept")
        axes.set(xlabel="step", ylabel="mean reward")
        axes.legend(frameon=False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        svg = drawn.getvalue()
        return f"<figure>{svg[svg.index('<svg') :]}</figure>"
    return ""
