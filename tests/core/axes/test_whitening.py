"""Whitening: the coordinates in which a prior is round, and where they are those of v itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tinylora_edge.axes import Whitening

N = 13


@pytest.fixture
def covariance() -> np.ndarray:
    """As a learned basis has it: variances that fall, and some correlation."""
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((N, 40)) * np.geomspace(0.1, 0.03, N)[:, None]
    return (mixing @ mixing.T / 40).astype(np.float32)


def test_there_and_back(covariance: np.ndarray) -> None:
    whitening = Whitening(covariance)
    assert not whitening.isotropic
    z = np.random.default_rng(0).standard_normal((7, 2, N))
    v = whitening.values(z)
    assert v.shape == z.shape
    np.testing.assert_allclose(whitening.coordinates(v), z, atol=1e-12)
    np.testing.assert_allclose(whitening.values(whitening.coordinates(v[0, 0])), v[0, 0], atol=1e-12)


def test_z_is_round_where_v_has_the_prior_and_has_its_unit(covariance: np.ndarray) -> None:
    whitening = Whitening(covariance)
    of_v = whitening.values(np.eye(N)).T  # columns: L
    scaled = covariance / np.mean(np.diag(covariance))
    np.testing.assert_allclose(of_v @ of_v.T, scaled, atol=1e-6)
    np.testing.assert_allclose(np.trace(of_v @ of_v.T), N)
    inverse = whitening.coordinates(np.eye(N)).T
    np.testing.assert_allclose(inverse @ scaled @ inverse.T, np.eye(N), atol=1e-5)


def test_the_gradient_by_z_is_that_of_the_function_of_z(covariance: np.ndarray) -> None:
    whitening = Whitening(covariance)
    rng = np.random.default_rng(1)
    slope, z = rng.standard_normal(N), rng.standard_normal(N)

    def f(z: np.ndarray) -> float:
        return float(np.sin(slope @ whitening.values(z)))

    by_v = np.cos(slope @ whitening.values(z)) * slope
    step = 1e-6
    expected = [(f(z + e) - f(z - e)) / (2 * step) for e in step * np.eye(N)]
    np.testing.assert_allclose(whitening.gradient(by_v), expected, atol=1e-8)


@pytest.mark.parametrize("scale", [None, 1.0, 0.1, 1 / 3, 7e-5])
def test_where_v_is_z_nothing_is_computed(scale: float | None) -> None:
    """None: no prior. All others: c I."""
    whitening = Whitening(None if scale is None else scale * np.eye(N, dtype=np.float32))
    assert whitening.isotropic
    given = np.random.default_rng(2).standard_normal(N).astype(np.float32)
    for done in (whitening.values, whitening.coordinates, whitening.gradient):
        assert done(given) is given


def test_a_basis_has_it(tiny_basis, covariance: np.ndarray) -> None:
    basis = tiny_basis(u=2)
    assert basis.prior is None
    assert basis.whitening.isotropic
    mean, four = np.arange(4, dtype=np.float32), covariance[:4, :4].copy()
    learned = dataclasses.replace(basis, prior_mean=mean, prior_covariance=four)
    np.testing.assert_array_equal(learned.prior.mean, mean)
    np.testing.assert_array_equal(learned.prior.covariance, (four.astype(float) + four.T.astype(float)) / 2)
    np.testing.assert_array_equal(learned.whitening.matrix, Whitening(four).matrix)
    other = dataclasses.replace(learned, prior_mean=mean + 1)
    assert other.digest == learned.digest == basis.digest
    assert other.prior.digest != learned.prior.digest
    assert learned.prior.digest == dataclasses.replace(learned).prior.digest
