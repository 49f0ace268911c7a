"""The prior of a projection: what is refused, that no digest covers it, and coordinates that fit it."""

from __future__ import annotations

import numpy as np
import pytest
import support

from tinylora_edge import Basis, BasisError, Projection
from tinylora_edge.projection import Prior, Whitening, check_prior

N = 4


def prior(size: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Variances that fall, and some correlation."""
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((size, 40)) * np.geomspace(0.1, 0.03, size)[:, None]
    return rng.standard_normal(size).astype(np.float32), (mixing @ mixing.T / 40).astype(np.float32)


MEAN, COVARIANCE = prior()


FACTORS = support.random_factors()
P = np.ones((N, len(FACTORS.modules), 2, 2))


def with_prior(*prior: np.ndarray) -> Basis:
    return Basis(FACTORS, Projection.learned(FACTORS.modules, P, prior or None))


def test_a_basis_has_it_outside_of_its_digest():
    basis, learned, other = with_prior(), with_prior(MEAN, COVARIANCE), with_prior(MEAN + 1, COVARIANCE)
    assert other.digest == learned.digest == basis.digest
    assert basis.projection.prior is None
    prior = learned.projection.prior
    np.testing.assert_array_equal(prior.mean, MEAN)
    np.testing.assert_allclose(prior.covariance, COVARIANCE, rtol=1e-6)
    np.testing.assert_array_equal(prior.covariance, prior.covariance.T)
    np.testing.assert_array_equal(learned.projection.whitening.matrix, Whitening(prior).matrix)
    again = with_prior(MEAN, COVARIANCE).projection.prior
    assert other.projection.prior.digest != prior.digest == again.digest


def changed(array: np.ndarray, *entries: tuple[object, float]) -> np.ndarray:
    result = array.copy()
    for index, value in entries:
        result[index] = value
    return result


EYE, NEAR = np.eye(N, dtype=np.float32), 1 - 2.0**-24
REFUSED = {
    "a short mean": (MEAN[:3], COVARIANCE, r"mean.*\(3,\).*\(4,\)"),
    "NaN": (changed(MEAN, (2, np.nan)), COVARIANCE, "mean.*finite"),
    "no variance": (MEAN, changed(COVARIANCE, ((1, 1), 0)), "variance that is not above 0"),
    "not symmetric": (MEAN, changed(COVARIANCE, ((0, 1), 9)), "not symmetric"),
    "singular": (MEAN, np.ones((N, N), np.float32), "not positive definite"),
    "definite by rounding alone": (
        MEAN,
        changed(EYE, ((0, 1), NEAR), ((1, 0), NEAR)),
        r"is 1\.19e-07 of its value's variance, and more than 2\.38e-07",
    ),
}


@pytest.mark.parametrize(("mean", "covariance", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(mean, covariance, message):
    with pytest.raises(BasisError, match=message):
        check_prior(mean, covariance, N)


def test_the_smallest_variance_is_not_rounded_away() -> None:
    found = Prior.of(np.zeros(2), [[1e-45, 0.0], [0.0, 1.0]], 2)
    assert np.isfinite(Whitening(found).coordinates(np.ones(2))).all()


def test_z_is_round_where_v_has_the_prior_and_has_its_unit() -> None:
    _, covariance = prior(13)
    whitening, eye = Whitening(Prior(np.zeros(13), covariance.astype(float))), np.eye(13)
    of_v = whitening.values(eye).T  # columns: L
    scaled = covariance / np.mean(np.diag(covariance))
    np.testing.assert_allclose(of_v @ of_v.T, scaled, atol=1e-6)
    rng = np.random.default_rng(1)
    z, slope = rng.standard_normal((7, 2, 13)), rng.standard_normal(13)
    np.testing.assert_allclose(whitening.coordinates(whitening.values(z)), z, atol=1e-12)
    by_z = (whitening.values(eye) - whitening.values(-eye)) @ slope / 2  # of slope' v(z)
    np.testing.assert_allclose(whitening.gradient(slope), by_z, atol=1e-12)
