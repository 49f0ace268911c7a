"""The report of a training run: one HTML page beside the vector, made of its record, FILE.json.

The page needs nothing else and runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ..jsonio import read_json
from ..writes import atomic_write
from . import console, results

_PAGE = Path(__file__).with_name("report.html")
_WIDTH, _HEIGHT = 640, 150
_CURVES = (("reward", "reward", "validation"), ("loss, nats a token", "loss", "validation_loss"))
"""Panels: their title, and the metrics of what is learned from (dashed) and of what was held back."""


def write_report(frame: Path) -> Path:
    """Write the page of a run beside its frame and record, all or nothing, and return where it lies."""
    record: dict[str, Any] = read_json(frame.with_name(f"{frame.name}.json"))
    data, result = frame.read_bytes(), record["result"]
    measured = results.rows(record)
    if "held_out" not in record:
        measured.append(("held out", "not measured: eval does that"))
    if "preamble" in record:
        measured.append(("behind", json.dumps(record["preamble"], ensure_ascii=False)))
    page = Template(_PAGE.read_text("utf-8")).substitute(
        title=escape(f"{len(data):,} bytes for {record['task']}"),
        arms=_table(results.table(record), header=True),
        measured=_table(measured),
        curve="".join(_panel(record["curve"], result["best_step"], *each) for each in _CURVES),
        training=_table(
            [
                *results.phases(record),
                ("steps", f"{result['steps']}, {result['stopped']}, {record['seconds']:.0f} s"),
                ("numbers", f"{record['numbers']:,}, {record['projection']}"),
                ("kept", f"step {result['best_step']}, by prompts held back from training"),
                ("held back", f"{result['start_score']:.3f} -> {result['best_score']:.3f}"),
            ]
        ),
        answers=_answers(record.get("answers", [])),
        frame=data.hex(),
        settings=_table(console.flat(record["options"] | {"basis": record["basis"], "tool": record["tool"]})),
    )
    path = frame.with_name(f"{frame.name}.html")
    with atomic_write(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))
    return path


def _table(rows: Iterable[Sequence[str]], *, header: bool = False) -> str:
    found: list[str] = []
    for row in rows:
        cell = "th" if header and not found else "td"
        found.append("".join(f"<{cell}>{escape(text)}</{cell}>" for text in row))
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in found)}</table>" if found else ""


def _answers(rows: list[dict[str, Any]]) -> str:
    """What was answered to the first held-out prompts, a table each."""
    tables = [_table([(name, str(text)) for name, text in row.items() if text is not None]) for row in rows]
    return f"<h2>Answers to held-out prompts</h2>{''.join(tables)}" if tables else ""


def _panel(rows: list[dict[str, Any]], best: int, title: str, learned: str, held_back: str) -> str:
    """Two metrics by step as an `<svg>`, with marks where a method begins and at what was kept."""
    lines: dict[str, list[tuple[int, float]]] = {learned: [], held_back: []}
    step, last, begins = 0, 1, []
    for row in rows:
        step = row.get("step", step)
        last = max(last, step)
        if row.get("event") == "start":
            begins.append((step, row.get("method", "")))
        for key, line in lines.items():
            if key in row:
                line.append((step, row[key]))
    values = [value for line in lines.values() for _, value in line]
    if not values:
        return ""
    low, high = min(0.0, *values), max(values)
    left, right, top, bottom = 48, _WIDTH - 8, 24, _HEIGHT - 20

    def x(step: float) -> str:
        return f"{left + (right - left) * step / last:.1f}"

    def y(value: float) -> str:
        return f"{bottom - (bottom - top) * (value - low) / (high - low or 1):.1f}"

    drawn = [f'<path d="M{left} {top}V{bottom}H{right}" opacity=".4"/>']
    for key, dashes in ((learned, ' stroke-dasharray="4 3" opacity=".6"'), (held_back, ' stroke-width="2"')):
        points = " ".join(f"{x(step)},{y(value)}" for step, value in lines[key])
        drawn.append(f'<polyline points="{points}"{dashes}/>' if points else "")
    marks = [(step, name, top - 2) for step, name in begins if name]
    for at, name, height in [*marks, (best, "kept", top + 10)] if best else marks:
        drawn.append(f'<path d="M{x(at)} {top}V{bottom}" opacity=".3"/>')
        drawn.append(f'<text x="{x(at)}" y="{height}" font-size="11">{escape(name)}</text>')
    for value in (low, high):
        drawn.append(
            f'<text x="{left - 4}" y="{y(value)}" text-anchor="end" font-size="11">{value:.3g}</text>'
        )
    drawn.append(f'<text x="{right}" y="{bottom + 14}" text-anchor="end" font-size="11">step {last}</text>')
    caption = f"{title}: held back (line), learned from (dashes)"
    drawn.append(f'<text x="{left}" y="{bottom + 14}" font-size="11">{escape(caption)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(drawn)}</svg>'
