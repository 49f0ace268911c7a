"""The curve of a training run as inline SVG: sampled reward and validation by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 26, 52
_TICKS = 5


def curve(rows: Sequence[dict[str, Any]], best_step: int, steps: int) -> str:
    """Return an `<svg>` element.

    Its classes `sampled`, `validation`, `best`, `event`, `grid` and `label` are for the page to colour.

    Args:
        rows: the metrics that training reports: of steps, with `step`, `reward` and sometimes
            `validation`; and of events, of which `start` and `validation` have a `validation`, and
            `back-off` a `step`.
        best_step: whose vector was kept; 0 for the start.
        steps: where the axis ends, at least 1.
    """
    sampled, validation = sampled_rewards(rows), validations(rows)
    plot = _Plot(max(steps, 1), [y for _, y in (*sampled, *validation)])
    parts = [plot.axes()]
    for row in rows:
        if row.get("event") == "back-off":
            parts.append(plot.upright(row["step"]))
    parts.append(plot.line(sampled, "sampled"))
    parts.append(plot.line(validation, "validation"))
    for step, value in validation:
        name = "validation best" if step == best_step else "validation"
        parts.append(plot.dot(step, value, name, f"step {step}: {value:.3f} held back"))
        if step == best_step:
            parts.append(plot.note(step, value, f"kept: {value:.2f}"))
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        "<title>Reward by training step</title>" + "".join(parts) + "</svg>"
    )


def sampled_rewards(rows: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return (step, mean reward of what it sampled) of a run's metrics."""
    return [(row["step"], row["reward"]) for row in rows if "event" not in row and "reward" in row]


def validations(rows: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return (step, mean reward of the prompts held back) of a run's metrics; the start is step 0."""
    return [
        (row.get("step", 0), row["validation"])
        for row in rows
        if "validation" in row and row.get("event") in (None, "start", "validation")
    ]


class _Plot:
    """The area of the plot: where steps and rewards lie, and the elements that are drawn there."""

    def __init__(self, steps: int, values: Sequence[float]) -> None:
        self._steps = steps
        self._low, self._high = min([0.0, *values]), max([1.0, *values])

    def x(self, step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / self._steps

    def y(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    def axes(self) -> str:
        parts = []
        for i in range(_TICKS + 1):
            value = self._low + (self._high - self._low) * i / _TICKS
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
            parts.append(_label(_LEFT - 8, y + 4, "end", f"{value:.1f}"))
        for step in _marks(self._steps):
            parts.append(_label(self.x(step), _HEIGHT - _BOTTOM + 20, "middle", str(step)))
        parts.append(_label((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "middle", "training step"))
        parts.append(_label(_LEFT, 14, "start", "mean reward"))
        return "".join(parts)

    def line(self, points: Sequence[tuple[float, float]], name: str) -> str:
        where = " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in points)
        return f'<polyline class="{name}" points="{where}"/>'

    def dot(self, step: float, value: float, name: str, text: str) -> str:
        return (
            f'<circle class="{name}" cx="{self.x(step):.1f}" cy="{self.y(value):.1f}" r="4">'
            f"<title>{escape(text)}</title></circle>"
        )

    def note(self, step: float, value: float, text: str) -> str:
        """Return words beside a dot: to its left in the right half, below it near the top."""
        right = step > self._steps / 2
        y = self.y(value)
        return _label(
            self.x(step) + (-10 if right else 10),
            y - 10 if y > _TOP + 24 else y + 24,
            "end" if right else "start",
            text,
        )

    def upright(self, step: float) -> str:
        return (
            f'<path class="event" d="M{self.x(step):.1f} {_TOP}V{_HEIGHT - _BOTTOM}">'
            f"<title>went back to the best vector after step {step}</title></path>"
        )


def _marks(steps: int) -> list[int]:
    """Return about eight round steps to label, the first and the last among them."""
    gap = next(g for n in range(9) for g in (10**n, 2 * 10**n, 5 * 10**n) if steps / g <= 8)
    marks = list(range(0, steps + 1, gap))
    if steps - marks[-1] > gap / 2:
        return [*marks, steps]
    return [*marks[:-1], steps] if len(marks) > 1 else [*marks, steps]


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
