"""Scores as bars with their standard errors, one below the other, from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .markup import Markup, table

_HIGH = 10


@dataclass(frozen=True)
class Score:
    """A mean reward to draw.

    Attributes:
        name: of what answered.
        mean: of its rewards.
        standard_error: of the mean; NaN where there is none.
        tone: `base`, `vector` or `prompt`, the class that the page colours.
        note: beside the figure, such as what a request costs.
    """

    name: str
    mean: float
    standard_error: float
    tone: str
    note: str = ""


def scores(rows: Sequence[Score]) -> str:
    """Return the scores as a table of name, bar and figure.

    The whisker is one standard error to each side. An axis from 0 to 1 is lengthened where a reward needs it.
    """
    low, high = _range(rows)
    return table(
        (),
        [(row.name, Markup(_bar(row, low, high)), figure(row) + _after(row)) for row in rows],
        ("", "bar", "number"),
    )


def figure(score: Score) -> str:
    """Return a score for reading: `0.734 +- 0.039`."""
    return f"{score.mean:.3f} +- {_known(score.standard_error)}"


def _after(row: Score) -> str:
    return f", {row.note}" if row.note else ""


def _known(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.3f}"


def _range(rows: Sequence[Score]) -> tuple[float, float]:
    ends = [row.mean + sign * _error(row) for row in rows for sign in (-1, 1)]
    if all(0 <= row.mean <= 1 for row in rows):
        return 0.0, 1.0
    return min([0.0, *ends]), max([1.0, *ends])


def _error(row: Score) -> float:
    return 0.0 if math.isnan(row.standard_error) else row.standard_error


def _bar(row: Score, low: float, high: float) -> str:
    def x(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low)

    zero, end = sorted((x(0.0), x(row.mean)))
    parts = [
        f'<svg viewBox="0 0 100 {_HIGH}" preserveAspectRatio="none" aria-hidden="true">',
        f'<rect class="{row.tone}" x="{zero:.2f}" y="1" width="{end - zero:.2f}" height="8"/>',
    ]
    if _error(row):
        left, right = x(row.mean - row.standard_error), x(row.mean + row.standard_error)
        parts.append(f'<line class="whisker" x1="{left:.2f}" x2="{right:.2f}" y1="5" y2="5"/>')
    parts.append("</svg>")
    return "".join(parts)
