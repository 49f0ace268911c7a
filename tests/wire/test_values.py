"""Values as bytes: int8's best scale of 24 bits, exact products, and what the format fixes."""

from __future__ import annotations

import numpy as np
import pytest
import support
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import Bases, FrameError, MicroVector, NonFiniteError, Policy, VectorError
from tinylora_edge.wire.values import BITS, dequantize, quantize

BASIS = support.random_basis(blocks=5, groups=13)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def error(values: np.ndarray) -> float:
    scale, q = quantize(values)
    return float(np.square(values.astype(np.float64) - dequantize(scale, q)).sum())


def least_error(values: np.ndarray) -> float:
    largest = np.abs(values).max()
    first, last = (int(np.float32(each).view("u4")) >> 8 for each in (largest / 400, largest))
    codes = np.arange(first, last + 2)
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


def test_many_values():
    values = np.random.default_rng(0).standard_normal(60_000).astype(np.float32)
    once = dequantize(*quantize(values))
    assert np.linalg.norm(once - values) < 0.012 * np.linalg.norm(values)
    assert dequantize(*quantize(once)).tobytes() == once.tobytes()


@pytest.mark.filterwarnings("error::RuntimeWarning")
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


ENTRIES = Bases(support.random_factors(blocks=1)).basis(rank=2)  # 3 modules of 2 x 2 numbers
LOUD = Policy(max_norm=np.inf)


def rounded(values: np.ndarray, dtype: str, entries: tuple[int, ...] = (3, 2, 2)) -> np.ndarray:
    return MicroVector(values, dtype, entries=entries).values


@pytest.mark.parametrize(("dtype", "bits"), BITS.items())
@pytest.mark.parametrize("seed", range(3))
def test_no_scale_of_a_column_is_much_better(dtype, bits, seed):
    values = np.random.default_rng(seed).standard_t(3, (2, 16, 3)).astype(np.float32)
    values *= np.float32([1, 0.001, 0])
    found = rounded(values.reshape(-1), dtype, values.shape).reshape(values.shape)
    least, half = np.square(values.astype(np.float64)).sum(1, keepdims=True), (1 << bits) / 2
    for scale in np.arange(0, 0x7C00, 128, dtype="<u2").view("<f2").astype(np.float64)[1:]:
        levels = np.clip(np.floor(values / scale), -half, half - 1) + 0.5
        least = np.minimum(least, np.square(values - scale * levels).sum(1, keepdims=True))
    assert (np.square(values.astype(np.float64) - found).sum(1, keepdims=True) <= 1.1 * least).all()
    assert not found[..., 2].any()
    assert not np.signbit(found[..., 2]).any()


@pytest.mark.parametrize("dtype", BITS)
@given(values=st.lists(st.floats(-30_000, 30_000, width=32), min_size=12, max_size=12))
def test_what_is_read_is_written_as_the_same_bytes(dtype, values):
    vector = MicroVector(values, dtype, entries=ENTRIES.entries)
    data = vector.to_bytes(ENTRIES)
    found = LOUD.check(data, ENTRIES)
    assert found.values.tobytes() == vector.values.tobytes()
    assert found.to_bytes(ENTRIES) == data


def test_a_column_has_a_scale():
    values = [1.5, 96, -0.5, 288, *[0] * 4, 1, -1, 1, 1]
    assert rounded(values, "q2").tolist() == values


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_values_that_no_scale_reaches():
    largest = 61440 * 1.5
    assert rounded([largest] * 12, "q2").tolist() == [largest] * 12
    for dtype, *beyond in (("q2", largest + 64, np.nan, -np.inf), ("int8", np.nan, np.inf, -np.inf)):
        for value in beyond:
            with pytest.raises(NonFiniteError, match=f"value 5 is .* not finite in {dtype}"):
                rounded([*[0] * 5, value, *[0] * 6], dtype)


def test_entries_that_a_vector_is_not():
    for shape, message in (((), "none$"), ((5, 2, 2), r"none of the shape \(5, 2, 2\)")):
        with pytest.raises(VectorError, match=f"12 numbers are {message}"):
            rounded(np.ones(12), "q4", shape)
    message = rf"of the shape \(3, 4, 1\), but those of basis {ENTRIES.id} are \(3, 2, 2\)"
    with pytest.raises(VectorError, match=message):
        MicroVector(np.ones(12), "q4", entries=(3, 4, 1)).to_bytes(ENTRIES)


@pytest.mark.parametrize(("at", "byte"), [(1, 0xF8), (2, 0xFF), (3, 0x45)])
def test_damage_to_bits(at, byte):
    bases = Bases(support.random_factors(blocks=1))
    basis = bases.basis(rank=1)
    payload = bytearray(bytes.fromhex("00783f") + b"\x05")
    assert Policy().check(support.frame(basis.digest, payload, dtype="q2"), basis).dtype == "q2"
    payload[at] = byte
    with pytest.raises(FrameError, match=r"of module [012], column 0 is not|that fill the last byte 0x45 up"):
        Policy().check(support.frame(basis.digest, payload, dtype="q2"), basis)


def test_bits_are_of_entries_alone():
    bases = Bases(support.random_factors(blocks=1))
    basis = bases.basis(numbers=3)
    for payload in (bytes(1), bytes(3 + 2)):
        with pytest.raises(FrameError, match="in q4, which only vectors of entries may be"):
            Policy().check(support.frame(basis.digest, payload, dtype="q4"), bases)
    with pytest.raises(VectorError, match=r"of the shape \(3, 1, 1\), but those of .* are \(\)"):
        MicroVector(np.ones(3), "q4", entries=(3, 1, 1)).to_bytes(basis)
