"""The metric of few questions that `ranks.py` judges by: the same as the one that `learn` has."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import support

from tinylora_edge.train.learned import Metric
from tinylora_edge.train.learned.directions import learned_directions


@pytest.fixture(scope="module")
def sampled() -> ModuleType:
    return support.script(Path(__file__).parents[2] / "benchmarks/_sampled.py")


@pytest.mark.parametrize("questions", [7, 60])
def test_it_is_the_metric_of_learn(sampled: ModuleType, questions: int) -> None:
    """With fewer scores than numbers, and with more."""
    rng = np.random.default_rng(0)
    scores, rows = rng.normal(size=(questions, 24)), rng.normal(size=(5, 24))
    metric, few = Metric.of(scores, 100), sampled.Sampled(scores, 100)
    for exponent, matrix in ((1.0, metric.information), (0.5, metric.root), (-0.5, metric.inverse_root)):
        np.testing.assert_allclose(few.power(rows, exponent), rows @ matrix, atol=1e-8)
    np.testing.assert_allclose(few.power(few.power(rows, -1.0), 1.0), rows, atol=1e-8)
    other = few.shrunk(10 * few.ridge)
    np.testing.assert_allclose(other.power(rows, 1.0) - few.power(rows, 1.0), 9 * few.ridge * rows)


def test_a_part_of_the_slopes_is_that_of_a_smaller_rank(sampled: ModuleType) -> None:
    """Directions that `learn` finds at rank 2 close as much when they are judged as ones of rank 3."""
    rng = np.random.default_rng(1)
    modules, lengths = 6, rng.integers(2, 9, 27).astype(np.int32)
    shared = rng.normal(size=(9, modules, 3, 3))
    halves = [(shared + rng.normal(size=shared.shape)).astype(np.float32) for _ in range(2)]
    scores = rng.normal(size=(27, modules, 3, 3)).astype(np.float32)
    side = sampled.Side(("x", "y", "z") * 3, *halves, scores, lengths)
    left, right, small = side.at(2)
    metric = Metric.of(small, side.tokens, shrinkage=0.0)
    found = learned_directions(((left + right) / 2).astype(np.float32), metric, 4)
    directions = found.directions.astype(np.float64)
    seen = sampled.closed(*side.at(3), side.tokens, sampled.embedded(directions, modules, 2, 3))
    best = np.linalg.solve(directions @ metric.information @ directions.T, directions)
    np.testing.assert_allclose(seen, 0.5 * ((left @ directions.T) * (right @ best.T)).sum(1), rtol=1e-5)
    part = side.of(np.array(side.families) == "y")
    assert part.families == ("y",) * 3
    assert part.tokens == lengths.reshape(9, 3)[1::3].sum()
    np.testing.assert_array_equal(part.at(2)[0], left[1::3])
    np.testing.assert_array_equal(part.at(3)[2], scores.reshape(9, 3, -1)[1::3].reshape(9, -1))
