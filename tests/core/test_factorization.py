"""truncated_svd against numpy's full SVD in float64."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from tinylora_edge import BasisError
from tinylora_edge.factorization import TruncatedSVD, factors, truncated_svd

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

TOL = 1e-3  # the default of truncated_svd
VALUES = 1e-4  # relative error of singular values that the project promises
ROUNDING = 5e-6  # of float32 results, on top of a measured residual

SHAPES = {
    "square": ((160, 160), 16),
    "tall": ((700, 90), 3),
    "wide": ((90, 700), 8),
    "of a rank beyond a block": ((120, 80), 64),
    "very tall": ((3000, 16), 2),
    "fewer columns than a block": ((300, 4), 2),
    "rows between one and two blocks": ((9, 300), 2),
    "two rows": ((2, 100), 1),
    "two by two": ((2, 2), 2),
}


def weight_like(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    few = min(*shape, 6)
    left, right = rng.standard_normal((shape[0], few)), rng.standard_normal((few, shape[1]))
    strength = 0.8 ** np.arange(few) / np.sqrt(max(shape))
    return (rng.standard_normal(shape) / np.sqrt(max(shape)) + (left * strength) @ right).astype(np.float32)


def residual(weight: np.ndarray, svd: TruncatedSVD) -> float:
    """Of both sides, in float64."""
    w, (u, s, v) = weight.astype(np.float64), (part.astype(np.float64) for part in svd)
    right = np.linalg.norm(w @ v - u * s, axis=0)
    left = np.linalg.norm(w.T @ u - v * s, axis=0)
    return float((np.maximum(right, left) / s).max())


def with_spectrum(values: list[float], shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((shape[0], len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((shape[1], len(values))))[0]
    return ((left * values) @ right.T).astype(np.float32)


def check(weight: np.ndarray, rank: int, svd: TruncatedSVD) -> None:
    full = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    assert [part.shape for part in svd] == [(weight.shape[0], rank), (rank,), (weight.shape[1], rank)]
    assert svd.U.dtype == svd.S.dtype == svd.V.dtype == np.float32
    np.testing.assert_allclose(svd.S, full.S[:rank], rtol=VALUES)
    assert (np.diff(svd.S) <= 0).all()
    for vectors, off in ((svd.U, 1e-3), (svd.V, 1e-5)):
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(rank), atol=off)
    assert svd.converged
    true = residual(weight, svd)
    assert true <= TOL + ROUNDING
    assert svd.residual == pytest.approx(true, rel=0.05, abs=ROUNDING)
    largest = np.abs(svd.V).argmax(axis=0)
    assert (svd.V[largest, np.arange(rank)] > 0).all()
    for i in range(rank):
        # a residual of e moves a vector by about e s^2 / (gap of s^2), so compare where that is small
        squares = full.S**2
        gap = min((abs(squares[i] - squares[j]) for j in range(len(squares)) if j != i), default=squares[i])
        if gap > 0.1 * squares[i]:
            assert abs(full.Vh[i] @ svd.V[:, i]) > 1 - 1e-3
            assert abs(full.U[:, i] @ svd.U[:, i]) > 1 - 1e-3


@pytest.mark.parametrize(("shape", "rank"), SHAPES.values(), ids=SHAPES)
def test_singular_values_and_vectors(shape, rank):
    weight = weight_like(shape, seed=rank)
    check(weight, rank, truncated_svd(weight, rank))


SPECTRA = {
    "flat": (np.random.default_rng(0).standard_normal((80, 150)), 2),
    # s2/s3 = 1.001, as in blk.17.attn_v of SmolLM2: any vector of their plane will do, the values not
    "nearly equal": (with_spectrum([1.0, 0.5, 0.5 / 1.001, *(0.3 * 0.97 ** np.arange(60))], (200, 150)), 2),
    "equal": (with_spectrum([2.0, 2.0, 2.0, 1.0, 0.5, 0.25], (60, 40)), 2),
    "more equal values than a block is wide": (np.eye(90), 64),
    "two such values": (with_spectrum([2.0] * 40 + [1.0] * 40, (200, 100)), 64),
}


@pytest.mark.parametrize(("weight", "rank"), SPECTRA.values(), ids=SPECTRA)
def test_values_that_lie_together(weight, rank):
    check(weight.astype(np.float32), rank, truncated_svd(weight, rank))


@pytest.mark.parametrize("ratio", [1e-1, 1e-2, 1e-3])
def test_a_dominant_first_value(ratio):
    """The second value must be found beside a first one that squaring would bury it under."""
    weight = with_spectrum([1.0, ratio, *(ratio * 0.7 ** np.arange(1, 20))], (150, 120))
    svd = truncated_svd(weight, 2)
    expected = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(svd.S, expected[:2], rtol=VALUES)
    # float32 rounds W's products relative to s1: by some eps, which depend on the order of a processor's sums
    assert residual(weight, svd) <= TOL + 30 * np.finfo(np.float32).eps / ratio


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_any_float_dtype_and_layout(dtype):
    weight = weight_like((120, 60)).astype(dtype)
    check(weight.astype(np.float32), 2, truncated_svd(weight, 2))
    fortran = np.asfortranarray(weight)
    check(weight.astype(np.float32), 2, truncated_svd(fortran, 2))


@pytest.mark.parametrize("exponent", [-15, 15, 30, 38])
def test_near_the_ends_of_float32_it_is_right_or_refuses(exponent):
    weight = weight_like((100, 80)) * np.float32(10.0**exponent)
    if exponent <= 15:
        check(weight, 2, truncated_svd(weight, 2))
    else:
        with pytest.raises(BasisError, match="too large"):
            truncated_svd(weight, 2)


@pytest.mark.parametrize(
    ("rows", "columns", "true_rank", "rank"),
    [(900, 200, 1, 2), (50, 60, 1, 2), (200, 300, 3, 4), (300, 200, 3, 40)],
)
def test_deficient_rank(rows, columns, true_rank, rank):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((rows, true_rank)) @ rng.standard_normal((true_rank, columns))
    weight = weight.astype(np.float32)
    svd = truncated_svd(weight, rank)
    there = min(true_rank, rank)
    expected = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(svd.S[:there], expected[:there], rtol=VALUES)
    assert (svd.S[there:] <= 1e-6 * svd.S[0]).all(), "the exporter refuses such a module by this ratio"
    np.testing.assert_allclose(svd.V.T @ svd.V, np.eye(rank), atol=1e-5)
    head = replace(svd, U=svd.U[:, :there], S=svd.S[:there], V=svd.V[:, :there])
    assert residual(weight, head) <= TOL + ROUNDING


def test_zero():
    svd = truncated_svd(np.zeros((20, 400)), 2)
    assert svd.S.tolist() == [0, 0]
    assert np.isfinite(np.concatenate([svd.U, svd.V])).all()
    assert np.isfinite(svd.residual)


@pytest.mark.parametrize("bound", [1, 2, 5])
def test_the_bound_on_passes_is_reported_honestly(bound):
    weight = np.random.default_rng(0).standard_normal((500, 400)).astype(np.float32)
    svd = truncated_svd(weight, 2, max_passes=bound)
    assert svd.passes == bound
    assert not svd.converged
    assert svd.residual > TOL
    assert svd.residual == pytest.approx(residual(weight, svd), rel=0.05)


def test_deterministic_for_input():
    weight = weight_like((150, 100))
    one, two = truncated_svd(weight, 2), truncated_svd(weight.copy(), 2)
    for first, second in zip(one, two, strict=True):
        assert first.tobytes() == second.tobytes()
    assert (one.residual, one.passes) == (two.residual, two.passes)


@pytest.mark.parametrize(("rank", "shape"), [(0, (5, 4)), (5, (5, 4)), (3, (2, 100)), (1, (0, 4))])
def test_refuses_a_rank_that_does_not_fit(rank, shape):
    with pytest.raises(BasisError, match=f"rank {rank} .*{shape[0]} x {shape[1]}"):
        truncated_svd(np.ones(shape), rank)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e300])
def test_refuses_values_that_float32_cannot_work_with(value):
    weight = np.random.default_rng(0).standard_normal((50, 40))
    weight[17, 5] = value
    with pytest.raises(BasisError, match="NaN, infinity"):
        truncated_svd(weight, 2)


@pytest.mark.parametrize("weight", [np.ones(4), np.ones((2, 2, 2)), np.ones((4, 4), np.int32), [["a", "b"]]])
def test_refuses_what_is_no_matrix_of_floats(weight):
    with pytest.raises(BasisError, match="matrix of floats"):
        truncated_svd(weight, 1)


def test_factors_multiply_to_the_truncated_weight():
    svd = truncated_svd(weight_like((60, 50)), 3)
    expected = (svd.U.astype(np.float64) * svd.S) @ svd.V.T
    a, b = factors(svd)
    assert (a.shape, b.shape) == ((3, 50), (60, 3))
    assert a.dtype == b.dtype == np.float32
    assert a.flags.c_contiguous
    np.testing.assert_allclose(b @ a, expected, atol=1e-6 * svd.S[0])
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(b, axis=0), svd.S, rtol=1e-3)


def test_a_large_weight_is_held_once():
    rng = np.random.default_rng(0)
    shape = (2560, 4096)
    weight = (rng.standard_normal(shape, dtype=np.float32) * np.float32(0.01)).astype(np.float16)
    for strength in (3.0, 2.0, 1.0):
        left, right = (rng.standard_normal(n, dtype=np.float32) / np.float32(60) for n in shape)
        weight += (np.outer(left, right) * np.float32(strength)).astype(np.float16)
    tracemalloc.start()
    svd = truncated_svd(weight, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * weight.size + (12 << 20)
    assert svd.converged
    assert residual(weight.astype(np.float32), svd) <= TOL + ROUNDING
