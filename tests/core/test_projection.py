"""Projections: golden values, the three kinds, descriptors, what is refused, and priors."""

from __future__ import annotations

import hashlib
import json
import warnings

import numpy as np
import pytest
import support
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import Basis, BasisError, Projection, limits, modules
from tinylora_edge.projection import Prior, Whitening, project

FACTORS = support.random_factors()
MODULES = FACTORS.modules
COUNT = len(MODULES)

GOLDEN = json.loads((support.GOLDEN / "projection.json").read_text())["projection"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['name']}-u{case['u']}-r{case['r']}")
def test_golden(case):
    p = project(case["seed"], case["name"], case["u"], case["r"])
    assert p.dtype == np.float32
    assert p.shape == (case["u"], case["r"], case["r"])
    assert p.astype("<f4").tobytes().hex() == case["hex_le_f32"]


@pytest.mark.parametrize(
    ("seed", "u", "rank", "message"),
    [(-1, 1, 2, "-1"), (1 << 64, 1, 2, str(1 << 64)), (0, 0, 2, "u 0"), (0, 1, 0, "rank 0")],
)
def test_refuses_arguments_out_of_range(seed, u, rank, message):
    with pytest.raises(BasisError, match=message):
        project(seed, "blk.0.attn_q.weight", u, rank)


KINDS = {
    "entries": Projection.entries(MODULES, 3),
    "entries, tall": Projection.entries(MODULES, (5, 2)),
    "learned": Projection.learned(MODULES, np.random.default_rng(0).standard_normal((5, COUNT, 2, 2))),
    "tiled": Projection.random(MODULES, 4),
    "of rank 3": Projection.random(MODULES, 5, 3),
    "of one number": Projection.random(MODULES, 1),
}


@pytest.mark.parametrize("projection", KINDS.values(), ids=KINDS)
class TestKinds:
    def test_the_adjoint_is_that_of_R(self, projection):
        rng = np.random.default_rng(2)
        v = rng.standard_normal(projection.size).astype(np.float32)
        g = rng.standard_normal((COUNT, *projection.shape))
        np.testing.assert_allclose(projection.adjoint(g) @ v, np.sum(g * projection.R(v)), rtol=1e-5)

    def test_the_map_that_others_compute_with_is_R_s(self, projection):
        v = np.random.default_rng(3).standard_normal(projection.size).astype(np.float32)
        tying, p = projection.tied
        rows = v.reshape(-1, p.shape[1])[tying].astype(np.float64)
        np.testing.assert_allclose(np.einsum("mu,muab->mab", rows, p), projection.R(v), atol=1e-5)

    def test_its_norm_is_that_of_R_for_signs(self, projection):
        by_number = np.stack([projection.R(unit) for unit in np.eye(projection.size, dtype=np.float32)])
        assert projection.norm == pytest.approx(np.linalg.norm(by_number))


def model(blocks: int) -> list[str]:
    return [f"blk.{block}.{kind}.weight" for block in range(blocks) for kind in modules.KINDS[:7]]


@given(st.data())
def test_groups(data) -> None:
    names = model(data.draw(st.integers(1, 9)))
    groups = data.draw(st.integers(1, len(names)))
    tying, _ = Projection.random(names, groups).tied
    assert tying.dtype == np.int32
    assert tying.tolist() == [j * groups // len(names) for j in range(len(names))]


def test_groups_that_cannot_be() -> None:
    for groups in (0, -1, 15, 2.5, True):
        with pytest.raises(BasisError, match=f"{groups} groups for 14 modules"):
            Projection.random(model(2), groups)
    with pytest.raises(BasisError, match=r"whole number k.*not 2\.5"):
        Projection.random(model(2), rank=2.5)
    with pytest.raises(BasisError, match="canonical order"):
        Projection.random(model(2)[::-1], 2)


def test_descriptors() -> None:
    p = np.arange(24, dtype="<f4").reshape(1, COUNT, 2, 2)
    found = [Projection.learned(MODULES, p), *KINDS.values()]
    assert [projection.descriptor for projection in (*found[:3], *found[4:])] == [
        f"learned rank=2 {hashlib.sha256(p.tobytes()).hexdigest()}",
        "entries rank=3",
        "entries out=5 in=2",
        "random rank=2 seed=42 groups=4 u=1 tying=tiled",
        "random rank=3 seed=42 groups=5 u=1 tying=tiled",
        "random rank=2 seed=42 groups=1 u=1 tying=tiled",
    ]
    for projection in found[4:]:
        read = Projection.read(projection.descriptor, MODULES)
        assert (read.descriptor, read.size) == (projection.descriptor, projection.size)
        np.testing.assert_array_equal(read.tied[1], projection.tied[1])


RANDOM = "random rank=2 seed=42 groups=4 u=1 tying=tiled"
UNREADABLE = {
    "entries": ("entries rank=2", "is not a known projection"),
    "a zero in front": (RANDOM.replace("42", "042"), "is not a known projection"),
    "another seed": (RANDOM.replace("42", "7"), "seed=7 .* is not a known projection"),
    "a line feed": (RANDOM + "\n", "is not a known projection"),
    "other digits": (RANDOM.replace("4 u", "\u0664 u"), "is not a known projection"),
    "groups without a module": (RANDOM.replace("groups=4", "groups=7"), "7 groups for 6 modules"),
    "a rank beyond any": (RANDOM.replace("rank=2", "rank=257"), "at most rank 256"),
}


@pytest.mark.parametrize(("descriptor", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_descriptors_that_are_refused(descriptor, message) -> None:
    with support.memory_limit(64 << 20), pytest.raises(BasisError, match=message):
        Projection.read(descriptor, MODULES)


ONES = np.ones((2, COUNT, 2, 2))
REFUSED = {
    "three dimensions": (ONES[0], None, r"\(6, 2, 2\).*\(n, 6, k, k\)"),
    "other modules": (ONES[:, :5], None, r"\(2, 5, 2, 2\)"),
    "no square": (ONES[..., :1], None, r"\(2, 6, 2, 1\)"),
    "no directions": (ONES[:0], None, r"\(0, 6, 2, 2\)"),
    "infinity": (ONES * 1e39, None, r"entry \(0, 0, 0, 0\).*inf"),
    "a prior of others": (ONES, ([0], [[1]]), r"\(1,\).*\(2,\)"),
    "a prior of too many": (np.ones((1025, COUNT, 1, 1)), ([0], [[1]]), "at most 1,024 numbers, not 1,025"),
}


@pytest.mark.parametrize(("p", "prior", "message"), REFUSED.values(), ids=REFUSED)
def test_learned_ones_that_are_refused(p, prior, message) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BasisError, match=message):
            Projection.learned(MODULES, p, prior)


def test_entries_that_are_refused() -> None:
    for rank, message in (((0, 2), "not 0x2"), ((257, 1), "not rank 257x1"), (2.5, "whole number")):
        with pytest.raises(BasisError, match=message):
            Projection.entries(MODULES, rank)


N = 4


def prior(size: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Variances that fall, and some correlation."""
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((size, 40)) * np.geomspace(0.1, 0.03, size)[:, None]
    return rng.standard_normal(size).astype(np.float32), (mixing @ mixing.T / 40).astype(np.float32)


MEAN, COVARIANCE = prior()
P = np.ones((N, COUNT, 2, 2))


def with_prior(*prior: np.ndarray) -> Basis:
    return Basis(FACTORS, Projection.learned(MODULES, P, prior or None))


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
NO_PRIORS = {
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


@pytest.mark.parametrize(("mean", "covariance", "message"), NO_PRIORS.values(), ids=NO_PRIORS)
def test_what_is_no_prior(mean, covariance, message):
    with pytest.raises(BasisError, match=message):
        Prior.of(mean, covariance, N)


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


def test_the_largest_dense_model_has_vectors_of_64_x_8() -> None:
    size = Projection.entries(model(126), (64, 8)).size  # of 405B
    assert size == 451_584
    assert 4 * size + 100 <= limits.VECTOR_FILE_BYTES  # in float32, signed
