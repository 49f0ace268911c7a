"""The values of a vector as bars around zero, by the names of their axes."""

from __future__ import annotations

from collections.abc import Sequence

from .markup import Markup, table

_HIGH = 10


def values(numbers: Sequence[float], names: Sequence[str] = ()) -> str:
    """Return the values as a table of name, bar and figure. All bars have one scale.

    Args:
        numbers: the values in their order.
        names: of the axes; none where they have no names, and the bars are v1, v2, ....
    """
    scale = max(map(abs, numbers), default=0.0) or 1.0
    labels = names or [f"v{number}" for number in range(1, len(numbers) + 1)]
    rows = [
        (label, Markup(_bar(value / scale)), f"{value:+.4g}")
        for label, value in zip(labels, numbers, strict=True)
    ]
    return table((), rows, ("", "bar", "number"))


def _bar(share: float) -> str:
    left, width = (50.0, 50 * share) if share >= 0 else (50 + 50 * share, -50 * share)
    return (
        f'<svg viewBox="0 0 100 {_HIGH}" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="vector" x="{left:.2f}" y="1" width="{width:.2f}" height="8"/>'
        f'<line class="zero" x1="50" x2="50" y1="0" y2="{_HIGH}"/></svg>'
    )
