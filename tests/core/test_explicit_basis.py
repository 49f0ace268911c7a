"""A basis with explicit projections: dense, and one a module."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import support

from tinylora_edge import BasisError

COUNT = 6  # modules of `tiny_basis`


def directions(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, COUNT, 2, 2)).astype(np.float32)


def test_each_value_of_a_dense_one_moves_its_direction(tiny_basis):
    basis, p = (
        tiny_basis(groups=3, seed=7, base_fingerprints=("ab" * 32,)),
        directions(5),
    )
    learned = basis.with_projections(p)
    assert (learned.u, learned.groups, learned.size, learned.scheme) == (5, 1, 5, "full")
    assert learned.projection == "explicit"
    assert learned.tying.tolist() == [0] * COUNT
    v = np.random.default_rng(1).standard_normal(5).astype(np.float32)
    expected = np.einsum("i,imab->mab", v.astype(np.float64), p.astype(np.float64))
    np.testing.assert_allclose(learned.R(v), expected, rtol=1e-5, atol=1e-6)
    for name in ("a", "b", "modules", "rank", "seed", "factorization", "base_fingerprints"):
        assert getattr(learned, name) == getattr(basis, name)
    assert learned.digest == support.digest(learned) != basis.digest


def test_projections_and_prior_are_its_own(tiny_basis):
    p, covariance = directions(2), np.eye(2, dtype=np.float32)
    learned = tiny_basis().with_projections(p, prior=([0, 0], covariance))
    digest = learned.digest
    p[:], covariance[:] = 0, 0
    assert support.digest(learned) == digest
    assert learned.prior_mean.dtype == learned.prior_covariance.dtype == np.float32
    np.testing.assert_array_equal(learned.prior_covariance, np.eye(2))
    assert learned.with_projections(directions(3)).prior is None, "it was of other values"


def test_one_a_module(tiny_basis):
    basis, p = tiny_basis(groups=3, u=2), directions(1)[0]
    learned = basis.with_projections(p)
    assert (learned.u, learned.groups, learned.scheme) == (1, 3, "tiled")
    v = np.array([2, -1, 0.5], np.float32)
    np.testing.assert_array_equal(learned.R(v), v[basis.tying, None, None] * p)
    other = tiny_basis(groups=1, u=13, scheme="full").with_projections(p, groups=2)
    assert (other.groups, other.scheme, other.tying.tolist()) == (2, "tiled", [0, 0, 0, 1, 1, 1])


def test_golden():
    """Computed with struct and hashlib alone, from docs/FORMAT.md."""
    basis, golden = support.golden_basis()
    assert basis.digest == support.digest(basis) == golden["digest_hex"]
    assert basis.prior is not None
    vector = np.frombuffer(bytes.fromhex(golden["vector_hex_le_f32"]), "<f4")
    found = [r.astype("<f4").tobytes().hex() for r in basis.R(vector)]
    assert found == [module["r_hex_le_f32"] for module in golden["basis"]["modules"]]


REFUSED = {
    "two dimensions": (np.ones((COUNT, 2)), {}, r"\(6, 2\).*\('n', 6, 2, 2\), or \(6, 2, 2\)"),
    "another rank": (np.ones((5, COUNT, 3, 3)), {}, r"\(5, 6, 3, 3\).*6 modules of rank 2"),
    "no directions": (np.ones((0, COUNT, 2, 2)), {}, r"\(0, 6, 2, 2\)"),
    "NaN": (np.where(np.arange(48).reshape(2, 6, 2, 2) == 7, np.nan, 1), {}, r"entry \(0, 1, 1, 1\).*nan"),
    "too large": (np.full((2, COUNT, 2, 2), 1e39), {}, r"entry \(0, 0, 0, 0\).*inf"),
    "too many groups": (np.ones((COUNT, 2, 2)), {"groups": 7}, "7 groups for 6 modules"),
    "a prior of others": (np.ones((5, COUNT, 2, 2)), {"prior": ([0], [[1]])}, r"\(1,\).*\(5,\)"),
    "a prior too large": (np.ones((1, COUNT, 2, 2)), {"prior": ([1e39], [[1]])}, "mean.*finite"),
}


@pytest.mark.parametrize(("p", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_refuses(tiny_basis, p, options, said):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BasisError, match=said):
            tiny_basis().with_projections(p, **options)
