"""Directions: what solutions share, by the definitions and against what is planted."""

from __future__ import annotations

import numpy as np
import pytest

from tinylora_edge import TrainError
from tinylora_edge.train.learned.directions import (
    coordinates,
    learned_directions,
    prior_of,
    random_directions,
    tiled_directions,
)

SHAPE = (6, 2, 2)


def planted(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Solutions in a plane of R, and an orthonormal basis of the plane: [count, M, r, r], [2, M r r]."""
    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(rng.standard_normal((24, 2)))[0].T
    places = rng.standard_normal((count, 2)) * (3, 1)
    return (places @ plane).reshape(count, *SHAPE).astype(np.float32), plane


def flat(directions: np.ndarray) -> np.ndarray:
    return directions.reshape(len(directions), -1).astype(np.float64)


def test_a_planted_plane_is_found():
    solutions, plane = planted(20)
    found = learned_directions(solutions, 2)
    assert found.shape == (2, *SHAPE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(flat(found) @ flat(found).T, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(flat(found) @ plane.T, axis=1), 1, atol=1e-5)
    places = coordinates(solutions, found)
    rebuilt = np.tensordot(places, found.astype(np.float64), 1)
    np.testing.assert_allclose(rebuilt, solutions, atol=1e-5)
    assert (places**2).sum(0)[0] > (places**2).sum(0)[1], "the first direction holds the most"


def test_what_all_share_counts():
    """Not centred: a shift that every behaviour asks for is the first direction."""
    rng = np.random.default_rng(1)
    shift = rng.standard_normal(SHAPE)
    solutions = (10 * shift + 0.1 * rng.standard_normal((8, *SHAPE))).astype(np.float32)
    first = flat(learned_directions(solutions, 1))[0]
    assert abs(first @ shift.reshape(-1)) / np.linalg.norm(shift) > 0.999


def test_signs_do_not_depend_on_those_of_the_solutions():
    solutions, _ = planted(9)
    signs = np.where(np.arange(9) % 2, 1, -1).astype(np.float32)[:, None, None, None]
    one, other = learned_directions(solutions, 2), learned_directions(solutions * signs, 2)
    np.testing.assert_allclose(one, other, atol=1e-6)
    for row in flat(one):
        assert row[np.abs(row).argmax()] > 0


def test_a_tile_has_a_direction_of_its_own():
    solutions, _ = planted(20)
    tying = np.array([0, 0, 1, 1, 1, 2], np.int32)
    found = tiled_directions(solutions, tying)
    assert found.shape == (3, *SHAPE)
    for tile in range(3):
        assert not found[tile, tying != tile].any()
        inside = solutions[:, tying == tile]
        np.testing.assert_allclose(found[tile, tying == tile], learned_directions(inside, 1)[0], atol=1e-6)
    np.testing.assert_allclose(flat(found) @ flat(found).T, np.eye(3), atol=1e-6)


def test_random_directions_are_orthonormal_and_repeat_by_seed():
    found = random_directions(SHAPE, 5, seed=3)
    np.testing.assert_allclose(flat(found) @ flat(found).T, np.eye(5), atol=1e-6)
    assert np.array_equal(found, random_directions(SHAPE, 5, seed=3))
    assert not np.allclose(found, random_directions(SHAPE, 5, seed=4))


def test_the_prior_is_that_of_the_places():
    rng = np.random.default_rng(2)
    places = rng.standard_normal((500, 3)) * (3, 1, 0.001) + (1, -2, 0)
    mean, covariance = prior_of(places)
    np.testing.assert_allclose(mean, (1, -2, 0), atol=0.5)
    assert np.array_equal(covariance, covariance.T)
    assert (np.linalg.eigvalsh(covariance.astype(np.float64)) > 0).all()
    assert covariance[2, 2] > 0.1, "a direction that few behaviours need is not ruled out"


def test_too_few_behaviours_are_refused():
    with pytest.raises(TrainError, match="3 behaviours cannot teach 4 directions"):
        learned_directions(planted(3)[0], 4)


def test_a_solution_that_is_not_finite_is_refused():
    solutions, _ = planted(3)
    solutions[1, 0, 0, 0] = np.nan
    with pytest.raises(TrainError, match="not finite: learn with a smaller step size"):
        learned_directions(solutions, 2)
