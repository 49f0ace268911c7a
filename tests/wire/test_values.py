"""Values as bytes: int8's best scale of 24 bits, exact products, and what the format fixes."""

from __future__ import annotations

import numpy as np
import pytest
import support
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import FrameError, MicroVector, NonFiniteError, Policy
from tinylora_edge.wire.values import DTYPES, counts, dequantize, payload_bytes, quantize

BASIS = support.random_basis(blocks=5, groups=13)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def error(values: np.ndarray) -> float:
    scale, q = quantize(values)
    return float(np.square(values.astype(np.float64) - dequantize(scale, q)).sum())


def least_error(values: np.ndarray) -> float:
    largest = np.abs(values).max()
    codes = np.arange(
        int(np.float32(largest / 400).view("u4")) >> 8, int(np.float32(largest).view("u4") >> 8) + 2
    )
    scales = (codes.astype("u4") << 8).view("f4").astype(np.float64)
    least = np.inf
    for part in np.array_split(np.concatenate([scales, -scales])[:, None], 64):
        q = np.clip(np.rint(values.astype(np.float64) / part), -128, 127)
        least = min(least, np.square(values - part * q).sum(1).min())
    return float(least)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [1, 2, 13])
def test_no_scale_is_better(n, seed):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(n) * 10.0 ** rng.integers(-8, 3)).astype(np.float32)
    assert error(values) <= least_error(values) * 2


def test_the_largest_value_is_cut_where_that_is_better():
    values = np.array([1.0, *([0.0039] * 3000)], np.float32)
    scale, q = quantize(values)
    assert np.abs(q.astype(int)).max() >= 127
    assert dequantize(scale, q)[0] < 0.95
    assert error(values) < 0.9 * np.square(values - np.rint(values * 127) / 127).sum()


@given(st.lists(finite, min_size=1, max_size=20))
def test_values_stay_finite_and_come_back_as_they_are(values):
    once = dequantize(*quantize(np.array(values, np.float32)))
    assert np.isfinite(once).all()
    assert not np.signbit(once[once == 0]).any()
    assert dequantize(*quantize(once)).tobytes() == once.tobytes()


@given(st.binary(min_size=3, max_size=3), st.lists(st.integers(-128, 127), min_size=1, max_size=20))
def test_what_others_wrote_comes_back_as_it_is(scale, q):
    codes = np.array(q, np.int8)
    values = dequantize(scale, codes)
    factor = float(np.frombuffer(b"\0" + scale, "<f4")[0])
    with np.errstate(invalid="ignore", over="ignore"):
        exact = factor * codes.astype(np.float64)
    if np.isfinite(values).all():
        assert (values == exact).all()
        assert dequantize(*quantize(values)).tobytes() == values.tobytes()


@pytest.mark.parametrize("n", [5000, 60_000])
def test_many_values(n):
    values = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    once = dequantize(*quantize(values))
    assert np.linalg.norm(once - values) < 0.012 * np.linalg.norm(values)
    assert dequantize(*quantize(once)).tobytes() == once.tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_its_place(value):
    values = np.ones(13, np.float32)
    values[5] = value
    with pytest.raises(NonFiniteError):
        MicroVector(values, "int8")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", ["00c07f", "00807f", "0080ff", "ff7f7f"])
def test_a_product_that_is_not_finite_is_refused(scale):
    data = support.frame(BASIS.digest, bytes.fromhex(scale) + b"\x02" * 13, dtype="int8")
    with pytest.raises(NonFiniteError):
        Policy().check(data, BASIS)


def test_the_byte_that_fills_up_is_zero():
    basis = support.random_basis(groups=4)
    payload = bytes.fromhex("00003e") + b"\x04\xfe\x01\x00"
    assert Policy().check(support.frame(basis.digest, payload + b"\0", dtype="int8"), basis).dtype == "int8"
    with pytest.raises(FrameError, match="0x01, not 0"):
        Policy().check(support.frame(basis.digest, payload + b"\1", dtype="int8"), basis)


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_are_all_numbers_of_values_that_take_so_many_bytes(dtype):
    for payload in range(300):
        assert counts(payload, dtype) == [n for n in range(1, 300) if payload_bytes(n, dtype) == payload]
