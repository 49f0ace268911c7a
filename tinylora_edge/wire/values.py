"""Values as bytes: fp32, bf16, fp16, int8 with one scale for all, and q2 and q4 with a scale a column of R.

docs/FORMAT.md has the bytes. Scales have so few bits that their products with codes are exact in float32, so
every reader gets the same values. q2 and q4 have a scale a column, as the sizes of columns differ a
hundredfold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FrameError, NonFiniteError, VectorError

BITS = {"q2": 2, "q4": 4}  # bits of a code, of the dtypes that have a scale a column
DTYPES = ("fp32", "bf16", "fp16", "int8", *BITS)  # a frame's first byte has the place of the first four
SCALED = ("int8", *BITS)  # dtypes in which several values share a scale
Entries = tuple[int, ...]
"""The layout of R where v is its entries: (M, p, q), then the rows of each module if one has fewer than p.
() where v is not the entries of R."""

SCALE_BYTES = 3  # of int8's scale, whose fourth and lowest byte would be 0
_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_LOWEST, _HIGHEST = -128, 127
_CUT = 1.04 ** np.arange(1, 60)  # ratios, up to 10, of the largest value to the largest that a scale reaches
_AT_ONCE = 1 << 20  # products of values and scales that are in memory at a time
_LARGEST = float(np.finfo(np.float32).max)
_LEVELS = {  # bits of a code -> the levels of the codes in each byte, float32 [256, 8 / bits]
    bits: (np.arange(256)[:, None] >> np.arange(0, 8, bits) & (1 << bits) - 1).astype(np.float32)
    - np.float32((1 << bits) / 2 - 0.5)
    for bits in BITS.values()
}
_NO_SCALE = 0xF8  # from this byte on a scale is not finite
_LARGEST_SCALE = float(np.finfo(np.float16).max)


def rounded(
    values: NDArray[np.float32], dtype: str, entries: Entries = ()
) -> tuple[NDArray[np.float32], bytes]:
    """Round values [n] to the nearest ones that `dtype` has; return them, and their bytes.

    Ties go to even. In int8 all values are rounded together, in q2 and q4 those of a column.

    NonFiniteError: a value is NaN or infinite, or too large for the dtype. VectorError: there is no such
    dtype, or it is q2 or q4 and the values are not the `entries` of R.
    """
    largest = _LARGEST
    if bits := BITS.get(dtype):
        largest = float(_scale(_NO_SCALE - 1)) * ((1 << bits) - 1) / 2
        if not entries or number_of(entries) != len(values):
            whole = f" of the shape {entries[:3]}" if entries else ""
            raise VectorError(f"{dtype} is for entries of R alone: {len(values)} numbers are none{whole}")
    found, payload = values, b""
    fits = np.abs(values) <= largest  # False for NaN
    if fits.all() or dtype not in SCALED:
        payload = encode_values(values, dtype, entries)
        found = decode_values(payload, dtype, len(values), entries)
        fits = np.isfinite(found)
    if not fits.all():
        index = int(np.flatnonzero(~fits)[0])
        raise NonFiniteError(f"value {index} is {values[index]}, which is not finite in {dtype}")
    return found, payload


def encode_values(values: NDArray[np.float32], dtype: str, entries: Entries = ()) -> bytes:
    """Return n values as `payload_bytes` bytes, little-endian."""
    if dtype == "fp32":
        return values.astype("<f4").tobytes()
    if dtype == "fp16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    if dtype == "bf16":
        bits = values.astype("<f4").view("<u4")
        upper = bits >> 16
        rounded = (bits + (0x7FFF + (upper & 1))) >> 16  # the sum can pass 32 bits for a NaN alone
        quiet_nan = upper | 0x40
        return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2").tobytes()
    if dtype == "int8":
        scale, q = quantize(values)
        return scale + q.tobytes() + bytes(is_padded(len(values), dtype))
    if width := BITS.get(dtype):
        scales, codes = quantize_columns(spread(values, entries), width, rows_of(entries)[..., None])
        each = np.unpackbits(gathered(codes, entries)[:, None], axis=1, count=width, bitorder="little")
        return scales.tobytes() + np.packbits(each, bitorder="little").tobytes()
    raise VectorError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")


def decode_values(data: bytes, dtype: str, size: int, entries: Entries = ()) -> NDArray[np.float32]:
    """Return the float32 values [size] of a payload of the right length.

    FrameError: a filling byte or bit is not 0, or a scale is not finite.
    """
    if is_padded(size, dtype) and data[-1]:
        raise FrameError(f"the byte that fills the frame up is {data[-1]:#04x}, not 0: it was damaged")
    if bits := BITS.get(dtype):
        return _decode_columns(data, bits, entries)
    if dtype == "bf16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float32)
    if dtype == "int8":
        return dequantize(data[:SCALE_BYTES], np.frombuffer(data, np.int8, size, SCALE_BYTES))
    return np.frombuffer(data, "<f4" if dtype == "fp32" else "<f2").astype(np.float32)


def _decode_columns(data: bytes, bits: int, entries: Entries) -> NDArray[np.float32]:
    modules, _, columns = entries[:3]
    count, used = modules * columns, number_of(entries)
    scales = np.frombuffer(data, np.uint8, count)
    if (wrong := np.flatnonzero(scales >= _NO_SCALE)).size:
        module, column = divmod(int(wrong[0]), columns)
        raise FrameError(f"the scale of module {module}, column {column} is not finite: it was damaged")
    if (rest := used * bits % 8) and data[-1] >> rest:
        raise FrameError(f"the bits that fill the last byte {data[-1]:#04x} up are not 0: it was damaged")
    levels = _LEVELS[bits].take(np.frombuffer(data, np.uint8, offset=count), axis=0).reshape(-1)[:used]
    return gathered(_products(scales.reshape(modules, columns), spread(levels, entries)), entries)


def number_of(entries: Entries) -> int:
    """Return n, the number of entries of R."""
    modules, p, q, *rows = entries
    return (sum(rows) if rows else modules * p) * q


def rows_of(entries: Entries) -> NDArray[np.bool_]:
    """Return which rows of R modules have: bool [M, p]."""
    modules, p, _, *rows = entries
    there: NDArray[np.bool_] = np.arange(p) < np.array(rows or [p] * modules)[:, None]
    return there


def spread(values: NDArray[Any], entries: Entries) -> NDArray[Any]:
    """Return R [M, p, q] of values [n], with zeros in the rows that a module does not have."""
    if len(entries) == 3:
        return values.reshape(entries)
    whole = np.zeros(entries[:3], values.dtype)
    whole[rows_of(entries)] = values.reshape(-1, entries[2])
    return whole


def gathered(r: NDArray[Any], entries: Entries) -> NDArray[Any]:
    """Return the values [n] of R [M, p, q]."""
    return r.reshape(-1) if len(entries) == 3 else r[rows_of(entries)].reshape(-1)


def payload_bytes(size: int, dtype: str, entries: Entries = ()) -> int:
    """Return how many bytes `size` values have: an even number, but in q2 and q4."""
    if bits := BITS.get(dtype):
        return entries[0] * entries[2] + (size * bits + 7) // 8
    scale = SCALE_BYTES if dtype == "int8" else 0
    return scale + size * _ITEM_BYTES[dtype] + is_padded(size, dtype)


def is_padded(size: int, dtype: str) -> bool:
    """Tell whether a zero byte follows `size` values, which makes their bytes even."""
    return dtype == "int8" and size % 2 == 0


def quantize(values: NDArray[np.float32]) -> tuple[bytes, NDArray[np.int8]]:
    """Return the scale (3 bytes), one of `_scales`, and q (int8 [n]) whose products come nearest to values.

    Values [n] are finite. Those that are such products already come back unchanged.
    """
    exact = values.astype(np.float64)
    scale, q, least = 0.0, np.zeros(len(exact)), float(exact @ exact)
    for scales in _scales(exact) if least else ():
        room = np.floor(_LARGEST / np.abs(scales))  # the largest q whose product is finite
        found = np.rint(exact / scales)
        found = np.clip(found, np.maximum(_LOWEST, -room), np.minimum(_HIGHEST, room))
        errors = np.square(exact - scales * found).sum(1)
        best = int(errors.argmin())
        if errors[best] < least:
            least, scale, q = float(errors[best]), float(scales[best, 0]), found[best]
    return np.float32(scale).astype("<f4").tobytes()[1:], q.astype(np.int8)


def dequantize(scale: bytes, q: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return float32 values [n]: scale * q, exactly; zeros have no sign."""
    factor = np.frombuffer(b"\0" + scale, "<f4")[0]
    with np.errstate(invalid="ignore", over="ignore"):  # callers refuse what is not finite
        values: NDArray[np.float32] = (factor * q.astype(np.float32) + np.float32(0)).astype(np.float32)
    return values


def _scales(values: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield scales of 24 bits to choose from, as columns: large ones first, each part with either sign.

    Some are the largest value divided by each q from 1 to 128, rounded down and up: among these are the
    scales of values that are products already. Others are that value divided by more than 128: they clip it,
    to the advantage of the smaller values.
    """
    parts = np.abs(values).max() / np.concatenate([np.arange(1, -_LOWEST + 1), -_LOWEST * _CUT])
    below = np.minimum(parts, _LARGEST).astype("<f4").view("<u4") & np.uint32(0xFFFFFF00)
    both = np.concatenate([below, np.minimum(below + np.uint32(0x100), np.uint32(0x7F7FFF00))])
    scales = np.unique(both[both > 0]).view("<f4").astype(np.float64)[::-1]
    for part in np.array_split(scales, 1 + len(scales) * len(values) // _AT_ONCE):
        yield from (part[:, None], -part[:, None])


def scaled(scales: NDArray[np.uint8], codes: NDArray[np.uint8], bits: int) -> NDArray[np.float32]:
    """Return the values [M, p, q] of scales [M, q] and codes [M, p, q], exactly; zeros have no sign."""
    return _products(scales, codes - np.float32((1 << bits) / 2 - 0.5))


def _products(scales: NDArray[np.uint8], levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales [M, q] times levels [M, p, q], which it overwrites."""
    levels *= _scale(scales).astype(np.float32)[:, None]
    levels += np.float32(0)
    return levels


def quantize_columns(
    values: NDArray[Any], bits: int, weights: NDArray[Any] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return scales (uint8 [M, q]) and codes (uint8 [M, p, q]) near R [M, p, q], by weighted least squares.

    Each scale that is tried puts the largest value of a column on a code, which finds the scale of values
    that are products already, or beyond the last code. It is then replaced by the best scale for the codes
    that it gives.
    """
    exact, most, weighed = values.astype(np.float64), (1 << bits) - 1, 1.0 if weights is None else weights
    scales, levels = np.zeros((len(exact), exact.shape[2]), np.uint8), np.full(exact.shape, -most / 2)
    least, largest = (weighed * exact**2).sum(1), np.abs(exact).max(1)
    for part in (*range(1, most + 1, 2), *(most * _CUT)):
        near = _levels(exact, 2 * largest / part, most)
        best = (weighed * exact * near).sum(1) / (weighed * near**2).sum(1)
        upper = np.minimum(best, _LARGEST_SCALE).astype(np.float16).view(np.uint16)
        tried = np.minimum((upper + 64) >> 7, _NO_SCALE - 1).astype(np.uint8)
        near = _levels(exact, _scale(tried), most)
        errors = (weighed * (exact - _scale(tried)[:, None] * near) ** 2).sum(1)
        better = errors < least
        least, scales = np.where(better, errors, least), np.where(better, tried, scales)
        levels = np.where(better[:, None], near, levels)
    return scales, (levels + most / 2).astype(np.uint8)


def _scale(byte: Any) -> NDArray[np.float64]:
    """Return the scales that bytes stand for: the bits of a float16 behind its sign, the lowest seven 0."""
    return (np.asarray(byte, np.uint16) << 7).view(np.float16).astype(np.float64)


def _levels(values: NDArray[np.float64], scales: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return the levels, from -most / 2 to most / 2 in steps of 1, whose products with scales [M, q] are
    nearest to values."""
    steps = scales[:, None]
    parts = np.divide(values, steps, out=np.zeros_like(values), where=steps > 0)
    return np.clip(np.floor(parts), -(most + 1) // 2, most // 2) + 0.5
