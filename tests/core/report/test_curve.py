"""The curve of a training: every point is where it belongs, and the axis can be read."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tinylora_edge.report.curve import curve, validations

CURVE = [
    {"event": "start", "validation": 0.25},
    {"step": 1, "reward": 0.2},
    {"event": "back-off", "step": 2, "validation": 0.0, "best": 0.25, "lr": 0.1},
    {"step": 2, "reward": 0.4, "validation": 0.0},
    {"step": 3, "reward": 0.5, "validation": 0.75},
]


def test_the_curve_has_every_point() -> None:
    svg = ElementTree.fromstring(curve(CURVE, 3, 3))
    sampled, validation = svg.findall("polyline")
    assert (sampled.get("class"), validation.get("class")) == ("sampled", "validation")
    heights = {}
    for line in (sampled, validation):
        points = [tuple(map(float, p.split(","))) for p in str(line.get("points")).split()]
        heights[line.get("class")] = points
    assert len(heights["sampled"]) == 3
    assert len(heights["validation"]) == len(svg.findall("circle")) == 3
    (x0, y0), (x2, y2), (x3, y3) = heights["validation"]
    assert x0 < x2 < x3
    assert y3 < y0 < y2  # 0.75 is drawn above 0.25, and that above 0
    assert [c.get("class") for c in svg.findall("circle")] == ["validation", "validation", "validation best"]
    assert len(svg.findall("path[@class='event']")) == 1


def test_validations_that_are_events_are_drawn_too() -> None:
    """TRL's engine reports them apart from the steps, which have no validation of their own."""
    rows = [
        {"event": "start", "step": 0, "validation": 0.25},
        {"step": 1, "reward": 0.2},
        {"event": "validation", "step": 1, "validation": 0.5},
    ]
    assert validations(rows) == [(0, 0.25), (1, 0.5)]
    assert "kept: 0.50" in curve(rows, 1, 1)


@pytest.mark.parametrize("steps", [1, 2, 7, 14, 15, 40, 60, 999])
def test_the_axis_has_few_round_labels_and_both_ends(steps: int) -> None:
    svg = ElementTree.fromstring(curve([], 0, steps))
    labels = [t.text for t in svg.findall("text") if t.get("text-anchor") == "middle"][:-1]
    marks = [int(str(label)) for label in labels]
    assert marks[0] == 0
    assert marks[-1] == steps
    assert marks == sorted(set(marks))
    assert 2 <= len(marks) <= 10
