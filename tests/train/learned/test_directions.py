"""Directions: what behaviours share, by the definitions and against what is planted."""

from __future__ import annotations

import numpy as np
import pytest

from tinylora_edge import TrainError
from tinylora_edge.train.learned.directions import learned_directions, prior_of, tiled_directions
from tinylora_edge.train.learned.metric import Metric

D = 24
PLANE = np.linalg.qr(np.random.default_rng(7).standard_normal((D, 2)))[0].T
FLAT = Metric.of(np.eye(D) * D**0.5, D, shrinkage=0)  # information is the identity


def uneven() -> Metric:
    """A metric whose directions cost from .01 to 100 nats, none of them along an axis."""
    turned = np.linalg.qr(np.random.default_rng(8).standard_normal((D, D)))[0]
    return Metric.of(turned * np.logspace(-1, 1, D)[:, None], 1, shrinkage=0)


def planted(count: int, metric: Metric = FLAT, seed: int = 0) -> np.ndarray:
    """Slopes whose steps -F^-1 g lie in the plane: float32 [count, D]."""
    places = np.random.default_rng(seed).standard_normal((count, 2)) * (3, 1)
    return (-(places @ PLANE) @ metric.information).astype(np.float32)


@pytest.mark.parametrize("metric", [FLAT, uneven()], ids=["flat", "uneven"])
def test_a_planted_plane_is_found(metric: Metric) -> None:
    slopes = planted(20, metric)
    found = learned_directions(slopes, metric, 2)
    assert (found.directions.shape, found.directions.dtype) == ((2, D), np.float32)
    gram = found.directions @ metric.information @ found.directions.T
    np.testing.assert_allclose(gram, np.eye(2), atol=1e-4)
    steps = -np.linalg.solve(metric.information, slopes.T).T
    np.testing.assert_allclose(found.places @ found.directions, steps, atol=1e-2)
    np.testing.assert_allclose(found.shares, 1, atol=1e-4)
    assert found.energy[0] > found.energy[1], "the first direction holds the most"
    assert found.energy.sum() == pytest.approx(1, abs=1e-4)


def test_what_all_share_counts() -> None:
    """Not centred: a shift that every behaviour asks for is the first direction."""
    rng = np.random.default_rng(1)
    shift = rng.standard_normal(D)
    slopes = (10 * shift + 0.1 * rng.standard_normal((8, D))).astype(np.float32)
    first = learned_directions(slopes, FLAT, 1).directions[0]
    assert abs(first @ shift) / np.linalg.norm(shift) > 0.999


def test_a_behaviour_that_asks_for_everything_counts_as_one() -> None:
    slopes = np.zeros((10, D), np.float32)
    slopes[:9, 0], slopes[9, 1] = 1, 1000
    first = learned_directions(slopes, FLAT, 1).directions[0]
    assert abs(first[0]) > 0.99


def test_signs_do_not_depend_on_those_of_the_slopes() -> None:
    slopes = planted(9)
    signs = np.where(np.arange(9) % 2, 1, -1).astype(np.float32)[:, None]
    one, other = (learned_directions(each, FLAT, 2).directions for each in (slopes, slopes * signs))
    np.testing.assert_allclose(one, other, atol=1e-6)
    for row in one:
        assert row[np.abs(row).argmax()] > 0


@pytest.mark.parametrize("metric", [FLAT, uneven()], ids=["flat", "uneven"])
def test_a_tile_has_a_direction_of_its_own(metric: Metric) -> None:
    slopes, tying = planted(20, metric), np.repeat([0, 1, 2], [8, 12, 4])
    found = tiled_directions(slopes, metric, tying)
    assert found.directions.shape == (3, D)
    for tile in range(3):
        inside = np.flatnonzero(tying == tile)
        assert not found.directions[tile, tying != tile].any()
        alone = learned_directions(slopes[:, inside], metric.within(inside), 1).directions[0]
        np.testing.assert_allclose(found.directions[tile, inside], alone, atol=1e-6)
    assert ((found.shares > 0) & (found.shares <= 1)).all()
    # the best places in these directions: the step that is left over asks for none of them
    steps = -np.linalg.solve(metric.information, slopes.T).T
    left = (steps - found.places @ found.directions) @ metric.information @ found.directions.T
    np.testing.assert_allclose(left, 0, atol=1e-3 * np.abs(slopes).max())


def test_a_metric_costs_what_its_samples_cost() -> None:
    rng = np.random.default_rng(3)
    factor = rng.standard_normal((D, D))
    scores = rng.standard_normal((200_000, D)) @ factor * 2  # of 4 tokens each
    metric = Metric.of(scores, 4 * len(scores), shrinkage=0)
    truth = factor.T @ factor
    assert np.abs(metric.information - truth).max() < 0.02 * np.abs(truth).max()
    np.testing.assert_allclose(metric.root @ metric.root, metric.information, atol=1e-8)
    np.testing.assert_allclose(metric.root @ metric.inverse_root, np.eye(D), atol=1e-8)


def test_few_samples_make_no_direction_free() -> None:
    scores = np.random.default_rng(4).standard_normal((3, D))
    metric = Metric.of(scores, 3)
    assert np.linalg.eigvalsh(metric.information)[0] > 0.05 * np.trace(metric.information) / D


def test_the_prior_is_that_of_the_places() -> None:
    rng = np.random.default_rng(2)
    places = rng.standard_normal((500, 3)) * (0.2, 0.1, 0.0001) + (0.1, -0.2, 0)
    mean, covariance = prior_of(places)
    assert mean[0] > 0.05 > -0.1 > mean[1]
    assert np.array_equal(covariance, covariance.T)
    assert (np.linalg.eigvalsh(covariance.astype(np.float64)) > 0).all()
    assert covariance[2, 2] > 1e-4, "a direction that few behaviours need is not ruled out"
    huge = prior_of(places * 1e6)
    assert (np.abs(huge[0]) <= 1).all(), "a step is shortened to a unit of effect at most"


def test_too_few_behaviours_are_refused() -> None:
    with pytest.raises(TrainError, match="3 behaviours cannot teach 4 directions"):
        learned_directions(planted(3), FLAT, 4)


def test_a_slope_that_is_not_finite_is_refused() -> None:
    slopes = planted(3)
    slopes[1, 0] = np.nan
    with pytest.raises(TrainError, match="not finite: the model computes infinities or NaN"):
        learned_directions(slopes, FLAT, 2)
