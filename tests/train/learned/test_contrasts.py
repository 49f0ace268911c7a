"""Named axes against what is planted: their direction, their order, and contrasts that are none."""

from __future__ import annotations

import numpy as np
import pytest

from tinylora_edge import TrainError
from tinylora_edge.train.learned.contrasts import CHANCE, Axis, chance, named_axes, question_slopes
from tinylora_edge.train.learned.directions import learned_directions
from tinylora_edge.train.learned.metric import Metric

D = 24
RNG = np.random.default_rng(5)
ONE, OTHER, THIRD = np.linalg.qr(RNG.standard_normal((D, 3)))[0].T
TURNED = np.linalg.qr(RNG.standard_normal((D, D)))[0]
METRIC = Metric.of(TURNED * np.logspace(-1, 1, D)[:, None], 1, shrinkage=0)  # costs from .01 to 100 nats


def contrast(step: np.ndarray, noise: float = 0.01, questions: int = 8, seed: int = 0) -> np.ndarray:
    """Slopes of questions whose mean step -F^-1 g is this one, in whitened coordinates."""
    scatter = noise * np.random.default_rng(seed).standard_normal((questions, D))
    return -(step + scatter) @ METRIC.root


def exact(contrasts: list[tuple[str, np.ndarray]]) -> tuple[tuple[Axis, ...], np.ndarray]:
    return named_axes(contrasts, METRIC, damping=0)


def test_an_axis_is_its_contrast_one_unit_long() -> None:
    (axis,), directions = exact([("length", contrast(3 * ONE))])
    assert directions.shape == (1, D)
    assert directions[0] @ ONE > 0.999, "plus is where the plus side is"
    assert np.linalg.norm(directions[0]) == pytest.approx(1)
    assert axis.length == pytest.approx(3, rel=0.01)
    assert axis.own == 1
    assert axis.signal > 0.99


def test_the_sides_exchanged_turn_it_around() -> None:
    slopes = contrast(ONE)
    (_, one), (_, other) = (exact([("x", each)]) for each in (slopes, -slopes))
    np.testing.assert_allclose(one, -other)


def test_a_later_axis_leaves_what_the_earlier_ones_hold() -> None:
    made = [("first", contrast(2 * ONE)), ("second", contrast(3 * ONE + 4 * OTHER, seed=1))]
    axes, directions = exact(made)
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-10)
    assert abs(directions[1] @ OTHER) > 0.999
    assert axes[1].length == pytest.approx(4, rel=0.02)
    assert axes[1].own == pytest.approx(16 / 25, rel=0.02)


def test_the_order_is_the_one_that_was_given() -> None:
    made = [("second", contrast(3 * ONE + 4 * OTHER, seed=1)), ("first", contrast(2 * ONE))]
    axes, directions = exact(made)
    assert [axis.name for axis in axes] == ["second", "first"]
    assert directions[0] @ (0.6 * ONE + 0.8 * OTHER) > 0.999


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_contrast(seed: int) -> None:
    with pytest.raises(TrainError, match=r"contrast of axis 'x' is empty: the steps of its sides differ by"):
        exact([("x", contrast(0 * ONE, noise=1, seed=seed))])


def test_noise_is_no_contrast_as_seldom_as_it_says() -> None:
    made = [chance(np.random.default_rng(seed).standard_normal((12, 5))) for seed in range(600)]
    assert np.mean(np.array(made) <= 0.1) == pytest.approx(0.1, abs=0.04)
    assert np.mean(np.array(made) <= CHANCE) < 0.03
    assert chance(np.ones((16, 3))) == pytest.approx(1 / 4096, abs=1 / 2048)
    assert chance(np.ones((8, 3))) == 1 / 128


def test_damping_takes_noise_out_of_what_costs_little() -> None:
    """Slopes scatter alike in all directions, so steps in cheap ones are noise: a damped one is nearer."""
    step = 8 * TURNED[D - 4 :].sum(0)  # in the costliest
    slopes = -(step @ METRIC.root + 3 * np.random.default_rng(1).standard_normal((16, D)))
    raw, damped = (
        named_axes([("x", slopes)], METRIC, damping=each)[1][0] @ step / np.linalg.norm(step)
        for each in (0, 1)
    )
    assert damped > raw


def test_no_difference_at_all_is_no_contrast() -> None:
    with pytest.raises(TrainError, match=r"contrast of axis 'x' is empty: .* differ by 0,"):
        exact([("x", np.zeros((8, D)))])


def test_an_axis_that_is_there_already_is_refused() -> None:
    made = [("one", contrast(ONE)), ("two", contrast(OTHER)), ("sum", contrast(ONE + OTHER, seed=2))]
    with pytest.raises(TrainError, match=r"'sum' is what the axes before it are already \(one, two\)"):
        exact(made)


def test_the_slope_of_a_question_counts_by_its_tokens() -> None:
    divergence = RNG.standard_normal((5, 3, 2, 2)).astype(np.float32)
    tokens = np.array([3, 9, 1, 14, 14], np.int32)
    found = question_slopes(divergence, tokens)
    assert found.shape == (5, 12)
    np.testing.assert_allclose(found.mean(0), divergence.reshape(5, 12).sum(0) / tokens.sum(), atol=1e-7)


def test_questions_scatter_as_their_mean_does() -> None:
    """What they estimate the variance of a ratio to be is what it is over many draws."""
    ratios, estimates = [], []
    for _ in range(3000):
        tokens = RNG.integers(4, 15, 16).astype(np.int32)
        summed = tokens + 0.3 * tokens * RNG.standard_normal(16)
        found = question_slopes(summed.astype(np.float32).reshape(16, 1, 1, 1), tokens)
        ratios.append(found.mean())
        estimates.append(found.var(ddof=1) / 16)
    assert np.mean(estimates) == pytest.approx(np.var(ratios), rel=0.15)


def planted(count: int) -> np.ndarray:
    """Slopes of behaviours that ask for three directions: float32 [count, D]."""
    places = np.random.default_rng(3).standard_normal((count, 3)) * (3, 2, 1)
    return (-(places @ np.stack([ONE, OTHER, THIRD])) @ METRIC.root).astype(np.float32)


def test_the_other_directions_are_found_in_what_axes_leave() -> None:
    _, named = exact([("x", contrast(-ONE - OTHER, noise=0))])
    found = learned_directions(planted(20), METRIC, 3, named)
    assert found.directions.shape == (3, D)
    gram = found.directions @ METRIC.information @ found.directions.T
    np.testing.assert_allclose(gram, np.eye(3), atol=1e-4)
    first = found.directions[0] @ METRIC.root
    assert first @ (ONE + OTHER) < -1.4, "it keeps its sign"
    np.testing.assert_allclose(found.shares, 1, atol=1e-4)
    assert found.energy.sum() == pytest.approx(1, abs=1e-4)
    steps = -planted(20) @ METRIC.inverse_root
    np.testing.assert_allclose(found.places[:, 0], steps @ first, atol=1e-3)


def test_axes_alone_need_no_behaviours() -> None:
    _, named = exact([("x", contrast(ONE)), ("y", contrast(OTHER))])
    found = learned_directions(planted(0), METRIC, 2, named)
    np.testing.assert_allclose(found.directions @ METRIC.root, named, atol=1e-5)
    with pytest.raises(TrainError, match="1 behaviours cannot teach 2 directions"):
        learned_directions(planted(1), METRIC, 4, named)
