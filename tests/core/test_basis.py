"""Basis: its digest against a second implementation, R and dW against naive arithmetic, what it refuses."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import support

from tinylora_edge import Basis, BasisError, MicroVector, NonFiniteError, VectorError, load_basis

FIXED = "9021c2eee84c489eb9a192ed5e557840bae0a4280829e96d1b0772e744dddd06"

VARIANTS = {
    "u1": {},
    "u13-full": {"u": 13, "groups": 1, "scheme": "full"},
    "structured": {"u": 2, "groups": 3, "scheme": "structured", "blocks": 4},
    "rank1": {"rank": 1, "u": 4},
    "rank4": {"rank": 4, "u": 3},
    "explicit": {"explicit": True, "u": 3},
    "experts": {"experts": 3, "u": 2, "groups": 4},
    "f16": {"factor_dtype": np.float16},
    "f16-explicit-experts": {"factor_dtype": np.float16, "explicit": True, "experts": 2, "u": 2},
    "custom-map": {"scheme": "custom", "tying": np.array([1, 0, 2, 1, 1, 0], np.int32), "groups": 3},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def basis(request, tiny_basis) -> Basis:
    return tiny_basis(**request.param)


def vector(basis: Basis, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((basis.groups, basis.u)).astype(np.float32)


class TestDigest:
    def test_equals_the_documented_layout(self, basis):
        assert basis.digest == support.digest(basis)
        assert basis.id == basis.digest[:8]

    def test_of_a_real_model(self, smollm2_bundle):
        basis = load_basis(smollm2_bundle / "basis.gguf")
        assert basis.digest == support.digest(basis)

    def test_a_fixed_value(self):
        """The test value of docs/FORMAT.md: two modules with counting factors."""
        steps = [np.arange(n, dtype=np.float32).reshape(shape) for n, shape in ((6, (2, 3)), (8, (4, 2)))]
        basis = Basis(
            architecture="llama",
            modules=("blk.0.attn_q.weight", "blk.0.attn_k.weight"),
            rank=2,
            u=1,
            groups=2,
            seed=42,
            factorization="left",
            scheme="tiled",
            tying=np.array([0, 1], np.int32),
            a=(steps[0], steps[0] / 2),
            b=(steps[1], steps[1] / 2),
        )
        assert basis.digest == support.digest(basis) == FIXED

    @pytest.mark.parametrize(
        "change",
        [
            {"architecture": "qwen2"},
            {"seed": 43},
            {"seed": 42 + (1 << 32)},
            {"tying": np.array([0, 0, 1, 0, 1, 1], np.int32)},
            {"groups": 3, "tying": np.array([0, 0, 1, 1, 1, 2], np.int32)},
            {"u": 2},
        ],
        ids=lambda change: "-".join(change),
    )
    def test_covers(self, tiny_basis, change):
        basis = tiny_basis()
        assert dataclasses.replace(basis, **change).digest != basis.digest

    @pytest.mark.parametrize("field", ["a", "b", "p"])
    def test_covers_every_entry(self, tiny_basis, field):
        basis = tiny_basis(blocks=1, explicit=True, experts=2, u=2)
        seen = {basis.digest}
        entries = 0
        for position, array in enumerate(getattr(basis, field)):
            for index in range(array.size):
                changed = array.copy()
                changed.reshape(-1)[index] = np.nextafter(changed.reshape(-1)[index], np.float32(9))
                arrays = list(getattr(basis, field))
                arrays[position] = changed
                seen.add(dataclasses.replace(basis, **{field: tuple(arrays)}).digest)
                entries += 1
        assert len(seen) == 1 + entries

    def test_covers_the_stored_form(self, tiny_basis):
        half = tiny_basis(factor_dtype=np.float16)
        single = dataclasses.replace(half, a=tuple(a.astype(np.float32) for a in half.a))
        assert half.digest != single.digest
        expert = dataclasses.replace(half, a=tuple(a[None] for a in half.a), b=tuple(b[None] for b in half.b))
        assert half.digest != expert.digest

    def test_does_not_cover_bases_nor_the_name_of_the_scheme(self, basis):
        other = dataclasses.replace(basis, base_fingerprints=("ab" * 32,), scheme="custom")
        assert other.digest == basis.digest


class TestArithmetic:
    def test_R_is_the_float64_sum_rounded_once(self, basis):
        v = vector(basis)
        r = basis.R(v)
        assert r.dtype == np.float32
        assert r.shape == (len(basis.modules), basis.rank, basis.rank)
        for m in range(len(basis.modules)):
            for a in range(basis.rank):
                for b in range(basis.rank):
                    total = 0.0
                    for i in range(basis.u):
                        total += float(v[basis.tying[m], i]) * float(basis.projections[m, i, a, b])
                    assert r[m, a, b] == np.float32(total)

    def test_delta_is_B_R_A(self, basis):
        v = vector(basis)
        for m, module in enumerate(basis.modules):
            delta = basis.delta(module, v)
            a, b = basis.a[m].astype(np.float64), basis.b[m].astype(np.float64)
            r = sum(
                float(v[basis.tying[m], i]) * basis.projections[m, i].astype(np.float64)
                for i in range(basis.u)
            )
            pairs = [(a, b)] if a.ndim == 2 else list(zip(a, b, strict=True))
            expected = np.stack([np.einsum("ok,kl,li->oi", one_b, r, one_a) for one_a, one_b in pairs])
            assert delta.dtype == np.float32
            assert delta.shape == (expected.shape[1:] if a.ndim == 2 else expected.shape)
            np.testing.assert_allclose(delta.reshape(expected.shape), expected, atol=2e-5)

    def test_a_row_reaches_the_modules_of_its_group_and_no_other(self, basis):
        for group in range(basis.groups):
            v = np.zeros((basis.groups, basis.u), np.float32)
            v[group, 0] = 1
            reached = basis.R(v).any(axis=(1, 2))
            assert reached.tolist() == (basis.tying == group).tolist()

    def test_takes_a_micro_vector_an_array_or_numbers(self, basis):
        v = vector(basis)
        forms = (MicroVector(v), v, v.reshape(-1), v.reshape(-1).tolist(), v.astype(np.float64))
        expected = basis.R(v)
        for form in forms:
            np.testing.assert_array_equal(basis.R(form), expected)
            np.testing.assert_array_equal(basis.values(form), v)
        assert basis.values(v).shape == (basis.groups, basis.u)

    @pytest.mark.parametrize("count", [0, 1, 11, 13])
    def test_a_wrong_number_of_values(self, tiny_basis, count):
        basis = tiny_basis(u=3, groups=4)
        for use in (basis.values, basis.R, lambda v: basis.delta(basis.modules[0], v)):
            with pytest.raises(VectorError, match=rf"{count} values.*12 \(4 groups x u 3\)"):
                use(np.zeros(count))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
    def test_values_that_are_not_finite(self, tiny_basis, value):
        v = np.zeros(4)
        v[2] = value
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(NonFiniteError, match="value 2 of the vector"):
                tiny_basis(u=2).values(v)


def arrays(*shape: int) -> tuple[np.ndarray, ...]:
    return tuple(np.ones(shape, np.float32) for _ in range(6))


REFUSED = {
    "a module twice": ({"modules": ("blk.0.attn_q.weight",) * 6}, "distinct modules"),
    "rank 0": ({"rank": 0}, "rank 0"),
    "seed of 65 bits": ({"seed": 1 << 64}, "seed 18446744073709551616"),
    "unknown factorization": ({"factorization": "right"}, "'right'.*'left'"),
    "unknown projection": ({"projection": "gauss"}, "'gauss'.*'irwin-hall-12/splitmix64' and 'explicit'"),
    "fewer A than modules": ({"a": arrays(2, 12)[:5]}, r"6 modules.*\(6, 5, 6, 0\)"),
    "a short tying map": ({"tying": np.array([0, 1], np.int32)}, r"\(2, 6, 6, 0\)"),
    "P without explicit": ({"p": arrays(1, 2, 2)}, r"0 P.*\(6, 6, 6, 6\)"),
    "P of another u": (
        {"projection": "explicit", "p": arrays(3, 2, 2)},
        r"blk.0.attn_q.weight.*\(3, 2, 2\).*\(1, 2, 2\)",
    ),
    "a group too many": ({"tying": np.array([0, 0, 0, 1, 1, 2], np.int32)}, "3 groups from 0 to 2.*0 to 1"),
    "a group that nobody reads": ({"groups": 4}, "2 groups from 0 to 1.*groups 0 to 3"),
    "A of another rank": ({"a": arrays(3, 12)}, r"blk.0.attn_q.weight.*\(3, 12\).*rank 2"),
    "B of another rank": ({"b": arrays(10, 3)}, r"\(10, 3\).*rank 2"),
    "A transposed": ({"a": arrays(12, 2)}, r"\(12, 2\)"),
    "other experts in B": ({"a": arrays(4, 2, 12), "b": arrays(3, 10, 2)}, r"\(4, 2, 12\).*\(3, 10, 2\)"),
    "factors in float64": (
        {"a": tuple(np.ones((2, 12)) for _ in range(6)), "b": tuple(np.ones((10, 2)) for _ in range(6))},
        "float64",
    ),
    "P in float64": (
        {"projection": "explicit", "p": tuple(np.ones((1, 2, 2)) for _ in range(6))},
        "float64",
    ),
    "a name that names no module": (
        {"modules": ("blk.0.attn_q", *(f"blk.{i}.attn_q.weight" for i in range(1, 6)))},
        "'blk.0.attn_q' is not a module name",
    ),
    "factors that are integers": ({"a": tuple(np.ones((2, 12), np.int32) for _ in range(6))}, "int32"),
}


@pytest.mark.parametrize(("fields", "said"), REFUSED.values(), ids=REFUSED)
def test_refuses(tiny_basis, fields, said):
    basis = tiny_basis()
    with pytest.raises(BasisError, match=said):
        dataclasses.replace(basis, **fields)
