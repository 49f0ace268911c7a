"""A bar chart as SVG: groups of bars with their standard errors, in light and in dark."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 58, 28
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.rule { stroke: #d0d7de }
.error { stroke: #24292f; stroke-width: 1.5 }
.series0 { fill: #afb8c1 } .series1 { fill: #d4a72c } .series2 { fill: #80b3ff } .series3 { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .rule { stroke: #30363d } .error { stroke: #e6edf3 }
  .series0 { fill: #6e7681 } .series1 { fill: #bb8009 } .series2 { fill: #316dca } .series3 { fill: #79c0ff }
}"""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: of its series, the same in every group.
        value: 0 to 1; None where there is none.
        error: standard error; 0 draws none.
    """

    name: str
    value: float | None
    error: float


def bars(groups: dict[str, list[Bar]], title: str) -> str:
    """Return the chart of values from 0 to 1 as an SVG document."""
    inner, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}\n</style>",
        f'<text x="{LEFT}" y="16" font-weight="600">{escape(title)}</text>',
    ]
    at = LEFT
    for index, bar in enumerate(next(iter(groups.values()))):
        parts.append(f'<rect class="series{index}" x="{at}" y="28" width="12" height="12"/>')
        parts.append(f'<text x="{at + 17}" y="38">{escape(bar.name)}</text>')
        at += 34 + 7 * len(bar.name)
    for tick in range(0, 11, 2):
        y = TOP + tall * (1 - tick / 10)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick / 10:g}</text>')
    span = inner / len(groups)
    for place, (name, group) in enumerate(groups.items()):
        left, width = LEFT + place * span + span * 0.1, span * 0.8 / len(group)
        for index, bar in enumerate(group):
            middle = left + (index + 0.5) * width
            if bar.value is None:
                parts.append(f'<text x="{middle:.1f}" y="{TOP + tall - 6}" text-anchor="middle">?</text>')
                continue
            y = TOP + tall * (1 - bar.value)
            parts.append(
                f'<rect class="series{index}" x="{left + index * width + 1:.1f}" y="{y:.1f}" '
                f'width="{width - 2:.1f}" height="{tall * bar.value:.1f}"/>'
            )
            if bar.error:
                top, low = (TOP + tall * (1 - bar.value - sign * bar.error) for sign in (1, -1))
                line = (
                    f'<line class="error" x1="{middle:.1f}" x2="{middle:.1f}" y1="{top:.1f}" y2="{low:.1f}"/>'
                )
                parts.append(line)
            else:
                top = y
            label = f"{bar.value:.2f}".lstrip("0")
            parts.append(f'<text x="{middle:.1f}" y="{top - 5:.1f}" text-anchor="middle">{label}</text>')
        middle = LEFT + (place + 0.5) * span
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 9}" text-anchor="middle">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
