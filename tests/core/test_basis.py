"""Factors, basis and bases: digests against a second implementation, arithmetic, ids, what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import support

from tinylora_edge import Bases, Basis, Factors, MicroVector, Policy, Projection
from tinylora_edge.errors import BasisError, BasisMismatchError, FrameError, NonFiniteError, VectorError
from tinylora_edge.factors import outputs_that_pay


@pytest.fixture(params=support.FACTORS.values(), ids=support.FACTORS)
def factors(request) -> Factors:
    return support.random_factors(**request.param)


def every(factors: Factors) -> list[Basis]:
    made = [Projection.entries(factors.modules, k) for k in range(1, factors.rank + 1)]
    made += [Projection.entries(factors.modules, shape) for shape in {(1, factors.rank), factors.shape}]
    made += [support.learned(factors, 5), Projection.random(factors.modules, min(3, len(factors.modules)), 1)]
    return [Basis(factors, projection) for projection in made]


def test_the_digest_equals_the_documented_layout(factors):
    for basis in every(factors):
        assert basis.digest == support.digest(factors, basis.projection.descriptor)
        assert basis.id == basis.digest[:8]


class TestArithmetic:
    def test_delta_is_B_R_A_of_the_leading_directions(self, factors):
        for basis in every(factors):
            v, (p, q) = MicroVector.random(basis, 1, seed=2), basis.shape
            r = basis.R(v).astype(np.float64)
            assert (r.shape, basis.rank) == ((len(factors.modules), p, q), q)
            for m, module in enumerate(basis.modules):
                a, b = factors.a[m].astype(np.float64)[..., :q, :], factors.b[m].astype(np.float64)[..., :p]
                delta = basis.delta(module, v)
                assert delta.dtype == np.float32
                np.testing.assert_allclose(delta, b @ r[m] @ a, atol=2e-4)
                assert factors.index(module) == m
        with pytest.raises(BasisError, match=rf"blk\.9\.attn_q\.weight.*from {factors.modules[0]}"):
            factors.index("blk.9.attn_q.weight")

    def test_the_corner_of_a_tall_R_is_a_square_one(self):
        factors = support.random_factors(outputs=5)
        tall, square = (Basis(factors, Projection.entries(factors.modules, shape)) for shape in ((5, 2), 2))
        v = MicroVector.random(square, 1)
        r = np.zeros((6, 5, 2), np.float32)
        r[:, :2] = square.R(v)
        for module in factors.modules:
            np.testing.assert_array_equal(tall.delta(module, r.reshape(-1)), square.delta(module, v))

    @pytest.mark.parametrize("shape", [(0,), (1,), (11,), (13,), (4, 3)])
    def test_a_wrong_number_of_values(self, shape):
        basis = support.random_basis(4, groups=12)
        for use in (basis.values, basis.R, lambda v: basis.delta(basis.modules[0], v)):
            with pytest.raises(VectorError, match=rf"{np.prod(shape)} values.*takes 12 numbers"):
                use(np.zeros(shape))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
    def test_values_that_are_not_finite(self, value):
        v = [0, 0, value, 0]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(NonFiniteError):
                support.random_basis(groups=4).values(v)

    def test_a_vector_of_another_basis(self):
        factors = support.random_factors()
        one, two = (Basis(factors, Projection.random(factors.modules, 2, rank)) for rank in (1, 2))
        with pytest.raises(BasisMismatchError):
            one.R(MicroVector.zeros(two))


LOUD = Policy(max_norm=1000)
"""Golden vectors are of unit entries: the R of the larger ones have norms that no trained vector has."""


@pytest.mark.parametrize("model", support.golden_models(), ids=lambda pair: pair[1]["name"].replace(" ", "-"))
def test_golden_digests_frames_and_R(model):
    """Computed by the reader in C, from docs/FORMAT.md alone."""
    bases, golden = model
    assert bases.factors.digest == golden["factors"]
    for entry in golden["bases"]:
        basis, frame = bases[entry["digest"][:8]], support.golden_frame(entry)
        assert basis.digest == entry["digest"]
        assert (basis.size, basis.projection.descriptor) == (entry["n"], entry["descriptor"])
        support.assert_golden(entry, "frame", frame)
        vector = MicroVector.from_bytes(frame, bases, LOUD)
        assert (vector.basis, vector.dtype, vector.sequence) == (entry["digest"], "int8", 7)
        support.assert_golden(entry, "r", basis.R(vector).astype("<f4").tobytes())
        assert MicroVector.from_bytes(vector.to_bytes(basis), bases, LOUD) == vector
    if golden["name"] == "small":  # all of it
        expected = [entry["digest"][:8] for entry in golden["bases"]]
        assert list(bases)[: len(expected)] == expected, "in the order of a look-up"


class TestBases:
    @pytest.fixture
    def bases(self) -> Bases:
        factors = support.random_factors(rank=3)  # of 6 modules
        projections = (support.learned(factors, 4), support.learned(factors, 13), support.learned(factors, 5))
        return Bases(factors, (*projections, Projection.learned(factors.modules, np.ones((4, 6, 2, 2)))))

    def test_by_numbers_it_is_the_last_that_is_stored_or_the_paper_s(self, bases):
        stored = bases.projections
        for numbers, projection in ((4, stored[3]), (13, stored[1]), (5, stored[2])):
            assert bases.basis(numbers=numbers).projection is projection
        for numbers in (1, 2, 3, 6):
            expected = Projection.random(bases.factors.modules, numbers)
            assert bases.basis(numbers=numbers).projection.descriptor == expected.descriptor
        assert bases.most == 54
        assert bases.id == bases.factors.digest[:8]

    def test_by_rank_it_is_the_entries(self, bases):
        assert [bases.basis(rank=k).size for k in (1, 2, 3)] == [6, 24, 54]
        assert bases.basis(rank=2) is bases[bases.basis(rank=2).id], "made once"

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            ({"numbers": 24}, "no projection has 24 numbers.*say --rank 2"),
            (
                {"numbers": 100},
                r"rank 1 to 3 \(6 to 54 numbers\), learned ones of 4 .* 13 .* tiled ones of 1 to 6",
            ),
            ({"numbers": 0}, "no projection has 0"),
            ({"rank": 4}, "rank 4 is not among 1 to 3.*--rank 4"),
            ({"rank": 0}, "rank 0 is not among 1 to 3"),
            ({"rank": [2, 4]}, "rank 2x4 is not among 1 to 3"),
            ({"rank": 2.0}, "whole number k, or two of them.* not 2.0"),
            ({"rank": (2,)}, "two of them"),
            ({"numbers": 1.5}, "no projection has 1.5"),
            ({}, "one of the two"),
            ({"numbers": 4, "rank": 2}, "one of the two"),
        ],
    )
    def test_what_there_is_not(self, bases, wanted, message):
        with pytest.raises(BasisError, match=message):
            bases.basis(**wanted)

    def test_the_basis_of_a_vector(self, bases):
        for basis in map(bases.__getitem__, bases):
            assert bases.of(MicroVector.zeros(basis)) is basis
        for size, rank in ((24, 2), (54, 3)):
            assert bases.of(MicroVector(np.zeros(size))) is bases.basis(rank=rank)
        assert bases.of(MicroVector(np.zeros(6))) is bases.basis(numbers=6)
        plain = Bases(support.random_factors(rank=1))
        assert plain.of(MicroVector(np.zeros(6))) is plain.basis(rank=1), "no tiled ones act on one direction"
        with pytest.raises(VectorError, match="fits no basis: no projection has 7 numbers"):
            bases.of(MicroVector(np.zeros(7)))
        other = support.random_basis(rank=3, rng=1)
        with pytest.raises(BasisMismatchError):
            bases.of(MicroVector.zeros(other))

    def test_entries_that_are_not_square(self):
        factors = support.random_factors(rank=2, outputs=4)  # of 6 modules
        bases = Bases(factors)
        assert bases.most == 48
        assert "rank 1 to 4x2 (6 to 48 numbers)" in bases.known()
        assert "rank 4x2" in repr(factors)
        tall = bases.basis(rank=(4, 2))
        assert tall.projection.descriptor == "entries out=4 in=2"
        assert bases.basis(rank=(2, 2)) is bases.basis(rank=2)
        frame = MicroVector.random(tall, 1).to_bytes(tall)
        assert bases.of_frame(frame) is tall
        assert bases.of(MicroVector(np.zeros(24))) is bases.basis(rank=2), "and not of 4x1"
        for numbers, names in ((48, "4x2: say --rank 4x2"), (12, "1x2 or 2x1: say --rank 1x2 or 2x1")):
            with pytest.raises(VectorError, match=f"all entries of rank {names}"):
                bases.of(MicroVector(np.zeros(numbers)))
        for shape, match in (((5, 2), "--rank 2 --outputs 5"), ((2, 3), "--rank 3,"), ((0, 2), "--rank 2,")):
            wrong = f"rank {shape[0]}x{shape[1]} is not among 1 to 4x2.*{match}"
            with pytest.raises(BasisError, match=wrong):
                bases.basis(rank=shape)

    def test_the_basis_of_a_frame(self, bases):
        for basis in map(bases.__getitem__, bases):
            assert bases.of_frame(MicroVector.random(basis, 1).to_bytes(basis)) is basis
        for data in (b"", b"x", bytes(24), bytes(3)):
            with pytest.raises(FrameError, match=f"{len(data)} bytes are not a frame"):
                bases.of_frame(data)
        other = support.random_basis(rank=3, rng=1)
        with pytest.raises(BasisMismatchError):
            bases.of_frame(MicroVector.zeros(other).to_bytes(other))

    def test_one_more(self, bases):
        more = bases.with_projection(support.learned(bases.factors, 7)).with_fingerprint("ab" * 32)
        assert (more.basis(numbers=7).size, more.fingerprints) == (7, ("ab" * 32,))
        assert set(more) - set(bases) == {more.basis(numbers=7).id}
        assert len(more) == len(list(more)) == len(bases) + 1
        again = support.learned(bases.factors, 4, prior=False)  # is the last of its size
        assert bases.with_projection(again).basis(numbers=4).projection is again

    def test_two_of_one_id(self, bases):
        with pytest.raises(BasisError, match=r"'entries rank=2.* has the id [0-9a-f]{8} of another"):
            bases.with_projection(Projection.entries(bases.factors.modules, 2))

    def test_more_than_any_reader_takes(self, bases):
        """Refused before they are written: the file would lose the model."""
        modules = bases.factors.modules
        made = [Projection.learned(modules, np.full((1, len(modules), 1, 1), i)) for i in range(61)]
        for projection in made[:60]:
            bases = bases.with_projection(projection)
        with pytest.raises(BasisError, match="65 projections beside the factors, and at most 64"):
            bases.with_projection(made[60])


def arrays(*shape: int) -> tuple[np.ndarray, ...]:
    return tuple(np.ones(shape, np.float32) for _ in range(6))


NAMES = tuple(f"blk.{block}.attn_q.weight" for block in range(6))
REFUSED = {
    "a module twice": ({"modules": (NAMES[0],) * 6}, "distinct modules"),
    "another order": ({"modules": NAMES[::-1]}, "canonical order"),
    "rank 0": ({"rank": 0}, "rank 0 and 0 outputs"),
    "unknown factorization": ({"factorization": "right"}, "'right'.*'left'"),
    "fewer A than modules": ({"a": arrays(2, 12)[:5]}, r"6 modules.*5 and 6"),
    "B of fewer outputs": ({"b": arrays(10, 1)}, "rank 2 and 1 outputs"),
    "B of other outputs": ({"b": (*arrays(10, 3)[1:], np.ones((10, 1), "f4"))}, r"\(10, 1\).* 3 outputs"),
    "B without an axis": ({"b": (np.float32(1).reshape(()),) * 6}, r"\(\), not those"),
    "A transposed": ({"a": arrays(12, 2)}, r"\(12, 2\)"),
    "other experts in B": ({"a": arrays(4, 2, 12), "b": arrays(3, 10, 2)}, r"\(4, 2, 12\).*\(3, 10, 2\)"),
    "factors in float64": ({"a": tuple(np.ones((2, 12)) for _ in range(6))}, "float64"),
    "a name that names no module": ({"modules": ("blk.0.attn_q", *NAMES[1:])}, "'blk.0.attn_q' is not a mod"),
    "a rank beyond any": ({"rank": 257}, "rank 257 and 257 outputs.* 256"),
    "an R beyond any": ({"rank": 205, "blocks": 4}, "at most 500,000 entries of R, not 504,300"),
    "too many": ({"modules": tuple(f"blk.{i}.attn_q.weight" for i in range(16_385))}, "16,384 .*not 16,385"),
    "a long name": ({"modules": ("blk.0." + "x" * 1100,)}, "names of 1,024 bytes, not .* of 1,106"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_factors_that_do_not_fit(fields, message):
    with support.memory_limit(64 << 20), pytest.raises(BasisError, match=message):
        support.random_factors(**fields)


def test_sizes_grow_with_the_width_and_end_with_the_factors():
    b = np.ones((896, 160), np.float32), np.ones((96, 96), np.float32)
    a = np.ones((8, 896), np.float32), np.ones((8, 4864), np.float32)
    factors = support.random_factors(1, kinds=("attn_q", "attn_k"), rank=8, a=a, b=b)
    assert factors.sizes == {"small": (2, 2), "medium": (28, 8), "large": (128, 8), "full": (160, 8)}
    less = support.random_factors(rank=3, outputs=5).sizes
    assert less == {"small": (2, 2)} | dict.fromkeys(("medium", "large", "full"), (5, 3))
    assert [outputs_that_pay(width) for width in (64, 576, 640, 896, 1536, 3584)] == [
        64,
        64,
        64,
        128,
        192,
        448,
    ]


def test_a_projection_that_does_not_fit_the_factors():
    factors = support.random_factors()
    with pytest.raises(BasisError, match="rank 3 is not among 1 to 2"):
        Basis(factors, Projection.entries(factors.modules, 3))
    with pytest.raises(BasisError, match="has 5 modules, which are not the 6"):
        Basis(factors, Projection.entries(factors.modules[:5], 1))
