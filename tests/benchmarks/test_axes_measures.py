"""The measures of named axes, and what passes: by hand, without a model."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import support

from tinylora_edge.tasks.behaviours import load_contrast, shipped_axes

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def axes() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS"):  # importing sets them; this takes them back
            patch.setenv(name, "1")
        patch.syspath_prepend(FOLDER)
        yield support.script(FOLDER / "axes.py")
        for name in ("_common", "_subjects"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("measure", "text", "value"),
    [
        ("length", "It's 3 words, isn't it?", 4),
        ("length", "", 0),
        ("formality", "It's here, and Anna's cat don\u2019t care.", 200 / 7),
        ("formality", "", 0),
        ("plainness", "The cat sat. The dog ran.", 206.835 - 1.015 * 3 - 84.6),
        ("plainness", "The little table.", 206.835 - 1.015 * 3 - 84.6 * 5 / 3),
        ("warmth", "Great! So good!! Yes.", 1),
        ("warmth", "It is 3.5 m.", 0),
        ("lists", "Here:\n1. one\n2) two\n- three", 3 / 4),
        ("lists", "1.5 is no item", 0),
        ("hedging", "It may rain, perhaps.", 50),
    ],
)
def test_measures(axes: ModuleType, measure: str, text: str, value: float) -> None:
    assert axes.MEASURES[measure][2](text) == pytest.approx(value)


def test_an_answer_without_words_has_no_reading_ease(axes: ModuleType) -> None:
    assert math.isnan(axes.reading_ease("42"))


def test_every_shipped_axis_has_a_measure(axes: ModuleType) -> None:
    assert set(shipped_axes()) <= set(axes.ORDER) <= set(axes.MEASURES)


def test_every_contrast_of_the_benchmark_can_be_made(axes: ModuleType) -> None:
    for name in axes.MEASURES:
        assert len(load_contrast(name, axes.file_of(name, "")).behaviours) == 4


def record(axis: str, x: float, *answers: str) -> dict[str, Any]:
    return {"axis": axis, "x": x, "answers": list(answers)}


def test_an_axis_passes_that_moves_its_own_measure_alone(axes: ModuleType) -> None:
    rows = [record("", 0, "so it is", "as it was so")]
    rows += [record("length", -1, "so", "as"), record("length", 1, "so it is as it", "as it was so it is")]
    rows += [record("warmth", -1, "so it is as", "as it was"), record("warmth", 1, "so it! is!", "as it!")]
    length, warmth = axes.judge(rows, ["length", "warmth"], [-1.0, 1.0])
    assert length["means"] == [1, 3.5, 5.5]
    assert length["monotone"]
    assert length["moves_sd"]["warmth"] == 0
    assert length["passes"]
    assert warmth["own"] > 0
    assert warmth["moves_sd"]["length"] < 0
    assert warmth["others"] == pytest.approx(-warmth["moves_sd"]["length"] / warmth["own"])


def test_an_axis_fails_that_turns_back_or_does_nothing(axes: ModuleType) -> None:
    rows = [record("", 0, "so it is", "as it was so")]
    rows += [
        record("length", -1, "so it is as", "as so it was it"),
        record("length", 1, "so it is as it", "a b c d e f"),
    ]
    rows += [
        record("warmth", -1, "so it is", "as it was so"),
        record("warmth", 1, "so it is", "as it was so"),
    ]
    length, warmth = axes.judge(rows, ["length", "warmth"], [-1.0, 1.0])
    assert not length["monotone"]
    assert not length["passes"]
    assert warmth["others"] == math.inf
    assert not warmth["passes"]
