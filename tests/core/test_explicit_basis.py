"""A basis with explicit projections: dense, one a module, and one value for every entry of R."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import support

from tinylora_edge import BasisError

COUNT = 6  # modules of `tiny_basis`


def directions(n: int, rank: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, COUNT, rank, rank)).astype(np.float32)


class TestDense:
    def test_each_value_moves_its_direction(self, tiny_basis):
        basis, p = tiny_basis(groups=3, base_fingerprints=("ab" * 32,)), directions(5)
        learned = basis.with_projections(p)
        assert (learned.u, learned.groups, learned.size, learned.scheme) == (5, 1, 5, "full")
        assert learned.projection == "explicit"
        assert learned.tying.tolist() == [0] * COUNT
        for m in range(COUNT):
            np.testing.assert_array_equal(learned.projections[m], p[:, m])
        v = np.random.default_rng(1).standard_normal(5).astype(np.float32)
        expected = np.einsum("i,imab->mab", v.astype(np.float64), p.astype(np.float64))
        np.testing.assert_allclose(learned.R(v), expected, rtol=1e-5, atol=1e-6)

    def test_all_else_stays(self, tiny_basis):
        basis = tiny_basis(seed=7, base_fingerprints=("ab" * 32,), factorization="sqrt")
        learned = basis.with_projections(directions(5))
        for name in ("a", "b", "modules", "rank", "seed", "factorization", "base_fingerprints"):
            assert getattr(learned, name) == getattr(basis, name)
        assert (learned.axes, learned.has_prior) == ((), False)
        assert learned.digest == support.digest(learned) != basis.digest

    def test_names_and_a_prior(self, tiny_basis):
        names = list("abcde")
        learned = tiny_basis().with_projections(directions(5), axes=names, prior=([0] * 5, 2 * np.eye(5)))
        assert learned.axes == tuple(names)
        assert learned.prior_mean.dtype == learned.prior_covariance.dtype == np.float32
        np.testing.assert_array_equal(learned.prior_covariance, 2 * np.eye(5))
        again = learned.with_projections(directions(3))
        assert (again.size, again.axes, again.has_prior) == (3, (), False), "they were those of other axes"

    def test_the_projections_are_its_own(self, tiny_basis):
        p, covariance = directions(2), np.eye(2, dtype=np.float32)
        learned = tiny_basis().with_projections(p, prior=(np.zeros(2), covariance))
        digest = learned.digest
        p[:], covariance[:] = 0, 0
        assert support.digest(learned) == digest
        np.testing.assert_array_equal(learned.prior_covariance, np.eye(2))


class TestOneAModule:
    def test_the_tying_stays(self, tiny_basis):
        basis, p = tiny_basis(groups=3, u=2), directions(1)[0]
        learned = basis.with_projections(p)
        assert (learned.u, learned.groups, learned.scheme) == (1, 3, "tiled")
        np.testing.assert_array_equal(learned.tying, basis.tying)
        v = np.array([2, -1, 0.5], np.float32)
        np.testing.assert_array_equal(learned.R(v), v[basis.tying, None, None] * p)

    def test_other_tiles(self, tiny_basis):
        learned = tiny_basis(groups=1, u=13, scheme="full").with_projections(
            directions(1)[0], groups=2, axes=("low", "high")
        )
        assert (learned.groups, learned.scheme, learned.tying.tolist()) == (2, "tiled", [0, 0, 0, 1, 1, 1])
        assert learned.axis("high") == 1


def test_all_entries_reach_every_R(tiny_basis):
    basis = tiny_basis(rank=3).with_all_entries()
    assert (basis.groups, basis.u, basis.size) == (COUNT, 9, 54)
    wanted = np.random.default_rng(0).standard_normal((COUNT, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(basis.R(wanted), wanted)
    assert basis.digest == support.digest(basis)
    named = tiny_basis().with_projections(directions(2), axes=("a", "b"), prior=(np.zeros(2), np.eye(2)))
    assert (named.with_all_entries().axes, named.with_all_entries().has_prior) == ((), False)


def test_golden():
    """Computed with struct and hashlib alone, from docs/FORMAT.md."""
    basis, golden = support.golden_basis()
    assert basis.digest == support.digest(basis) == golden["digest_hex"]
    assert basis.axes == ("length", "formality", "Wärme = plain speech")
    assert basis.has_prior
    vector = np.frombuffer(bytes.fromhex(golden["vector_hex_le_f32"]), "<f4")
    found = [r.astype("<f4").tobytes().hex() for r in basis.R(vector)]
    assert found == [module["r_hex_le_f32"] for module in golden["basis"]["modules"]]


REFUSED = {
    "two dimensions": (np.ones((COUNT, 2)), {}, r"\(6, 2\).*\('n', 6, 2, 2\), or \(6, 2, 2\)"),
    "another rank": (np.ones((5, COUNT, 3, 3)), {}, r"\(5, 6, 3, 3\).*6 modules of rank 2"),
    "other modules": (np.ones((5, 4, 2, 2)), {}, r"\(5, 4, 2, 2\)"),
    "modules first": (np.ones((COUNT, 5, 2, 2)), {}, r"\(6, 5, 2, 2\)"),
    "no directions": (np.ones((0, COUNT, 2, 2)), {}, r"\(0, 6, 2, 2\)"),
    "NaN": (np.where(np.arange(48).reshape(2, 6, 2, 2) == 7, np.nan, 1), {}, r"entry \(0, 1, 1, 1\).*nan"),
    "too large": (np.full((2, COUNT, 2, 2), 1e39), {}, r"entry \(0, 0, 0, 0\).*inf"),
    "groups of a dense form": (np.ones((5, COUNT, 2, 2)), {"groups": 2}, "one group, not 2"),
    "too many groups": (np.ones((COUNT, 2, 2)), {"groups": 7}, "7 groups for 6 modules"),
    "too few names": (np.ones((5, COUNT, 2, 2)), {"axes": ("a",)}, "1 axes have names.*5 values"),
    "a prior of others": (np.ones((5, COUNT, 2, 2)), {"prior": ([0], [[1]])}, r"\(1,\).*5 values"),
    "a prior too large": (np.ones((1, COUNT, 2, 2)), {"prior": ([1e39], [[1]])}, r"entry \(0,\).*inf"),
}


@pytest.mark.parametrize(("p", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_refuses(tiny_basis, p, options, said):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BasisError, match=said):
            tiny_basis().with_projections(p, **options)
