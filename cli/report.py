"""A report on runs as one HTML file without scripts: curves, figures, answers, and changes elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tinylora_edge.writes import atomic_write

from . import results

Record = dict[str, Any]
Points = list[tuple[float, float]]

_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _FOOT = 720, 240, 56, 16, 12, 34  # pixels of a chart and its margins
_COLOURS = "#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#9a6700"
_STYLE = """
:root { color-scheme: light dark; --line: #d1d9e0; --dim: #59636e; --right: #dafbe1 }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --dim: #9198a1; --right: #12361f } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } .wide { overflow-x: auto }
td, th { border-bottom: 1px solid var(--line); padding: .3em .8em .3em 0 }
td, th { text-align: left; vertical-align: top }
th { font-weight: 600 } td.right { background: var(--right) }
.answers td { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 9em; padding-left: .4em }
svg { width: 100%; max-width: 760px; height: auto } svg text { font-size: 12px; fill: var(--dim) }
svg line { stroke: var(--line) } .dim { color: var(--dim) }
"""


def write(path: Path, records: Mapping[str, Record]) -> None:
    """Write the page of records, which have their names on it."""
    with atomic_write(path) as file:
        file.write(page(records).encode())


def page(records: Mapping[str, Record]) -> str:
    """Return the page. CommandError: the records' figures have different units."""
    several = len(records) > 1
    title = ", ".join(records)
    table = results.table(*records.values(), names=[*records] if several else [])
    parts = [f"<h1>{escape(title)}</h1>", *_charts(records), *_table(table)]
    for name, record in records.items():
        parts += [f"<h2>{escape(name)}</h2>"] if several else []
        parts += _section(record)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _section(record: Record) -> Iterator[str]:
    """Yield the part of one record: how it was made, its figures, its answers, and changed general ones."""
    known = ("tool", "task", "split", "projection", "numbers", "dtype", "basis", "seconds")
    made = [(name, str(record[name])) for name in known if name in record]
    phases = results.phases(record) if "result" in record else []
    yield from _table([("", ""), *made, *phases, *results.rows(record)])
    if system := record.get("prompt", {}).get("system"):
        yield f'<h3>The instruction that it was measured beside</h3><p class="answers">{_lines(system)}</p>'
    names = results.arm_names(record)
    if answers := record.get("answers"):
        arms = [name for name in names if name in answers[0]]
        yield "<h3>Answers to prompts that were held out</h3>"
        yield from _answers(answers[: results.ANSWERS], {"asked": "asked", "wanted": "right"}, names, arms)
    if examples := record.get("drift", {}).get("examples"):
        yield "<h3>Elsewhere: general prompts whose answers changed</h3>"
        yield from _answers(examples, {"asked": "asked"}, names, ["base", "vector"])


def _answers(
    rows: Sequence[Record], first: Mapping[str, str], names: Mapping[str, str], arms: Sequence[str]
) -> Iterator[str]:
    yield '<div class="wide"><table class="answers"><tr>'
    yield "".join(f"<th>{escape(text)}</th>" for text in (*first.values(), *(names[arm] for arm in arms)))
    for row in rows:
        cells = [f"<td>{escape(str(row.get(key) or ''))}</td>" for key in first]
        for text in (str(row.get(arm, "")).strip() for arm in arms):
            right = ' class="right"' if text and text == str(row.get("wanted") or "").strip() else ""
            cells.append(f"<td{right}>{escape(text)}</td>")
        yield f"</tr><tr>{''.join(cells)}"
    yield "</tr></table></div>"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for header in rows[:1]:
        yield '<div class="wide"><table>'
        if any(header):
            yield f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>"
        yield from (f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
        yield "</table></div>"


def _charts(records: Mapping[str, Record]) -> Iterator[str]:
    """Yield the curves of the scores on held-back prompts and of their loss, by step."""
    sign = -1 if any("unit" in record for record in records.values()) else 1
    for key, title in (
        ("validation", "prompts held back"),
        ("validation_loss", "loss on answers held back, nats a token"),
    ):
        factor = sign if key == "validation" else 1
        lines = {
            name: [(row.get("step", 0), factor * row[key]) for row in record.get("curve", ()) if key in row]
            for name, record in records.items()
        }
        if drawn := {name: points for name, points in lines.items() if len(points) > 1}:
            yield f"<h3>{title}</h3>{_chart(title, drawn)}"


def _chart(title: str, lines: Mapping[str, Points]) -> str:
    """Return curves as SVG, with steps on the horizontal axis."""
    xs, ys = zip(*[point for points in lines.values() for point in points], strict=True)
    low, high, last = min(*ys, 0.0), max(ys), max(xs) or 1
    span = high - low or 1.0

    def place(x: float, y: float) -> str:
        right = _LEFT + (_WIDE - _LEFT - _RIGHT) * x / last
        down = _TOP + (_HIGH - _TOP - _FOOT) * (high - y) / span
        return f"{right:.1f},{down:.1f}"

    parts = [f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{escape(title)}">']
    for y in (low, (low + high) / 2, high):
        at = place(0, y).split(",")[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at}" dy="4" text-anchor="end">{y:.3g}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HIGH - 18}" text-anchor="middle">0</text>')
    parts.append(f'<text x="{_WIDE - _RIGHT}" y="{_HIGH - 18}" text-anchor="end">step {last:g}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(place(*point) for point in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(lines) > 1:
            x = _LEFT + 150 * number
            parts.append(f'<text x="{x}" y="{_HIGH - 3}" style="fill: {colour}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _lines(text: str) -> str:
    return "<br>".join(map(escape, text.splitlines()))
