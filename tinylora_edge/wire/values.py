"""Values as bytes: fp32, bf16, fp16, and int8 with one scale for all.

Values in int8 are n numbers of 8 bits and one scale of 24, v = scale * q. The scale is the upper 24 bits of a
float32, sign included: 16 significant bits. Its product with a q of 8 bits is therefore exact in float32, and
every reader has the same values. A zero byte fills an even number of values up, so that a payload's length is
even.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFiniteError, VectorError

DTYPES: tuple[str, ...] = ("fp32", "bf16", "fp16", "int8")
"""dtypes of values, in the order of their codes."""

SCALE_BYTES = 3

_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_LOWEST, _HIGHEST = -128, 127
_CUT = 1.04 ** np.arange(1, 60)  # how far the largest value may lie beyond the largest q
_AT_ONCE = 1 << 20
_LARGEST = float(np.finfo(np.float32).max)


def finite(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Round values [n] to the nearest ones that `dtype` carries: ties to even, in int8 all of them together.

    Raises:
        NonFiniteError: one is NaN or infinite, or too large for the dtype.
        VectorError: there is no such dtype.
    """
    rounded = values
    if dtype != "int8" or np.isfinite(values).all():
        rounded = decode_values(encode_values(values, dtype), dtype, len(values))
    if not np.isfinite(rounded).all():
        index = int(np.flatnonzero(~np.isfinite(rounded))[0])
        raise NonFiniteError(
            f"value {index} is {values[index]}, which is not finite in {dtype}: every value must be"
        )
    return rounded


def encode_values(values: NDArray[np.float32], dtype: str) -> bytes:
    """Return n values as `payload_bytes` bytes, little-endian."""
    if dtype == "fp32":
        return values.astype("<f4").tobytes()
    if dtype == "fp16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    if dtype == "bf16":
        bits = values.astype("<f4").view("<u4").astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
        quiet_nan = (bits >> np.uint64(16)) | np.uint64(0x40)
        return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2").tobytes()
    if dtype == "int8":
        scale, q = quantize(values)
        return scale + q.tobytes() + bytes(is_padded(len(values), dtype))
    raise VectorError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")


def decode_values(data: bytes, dtype: str, size: int) -> NDArray[np.float32]:
    """Return the float32 values [size] of a payload of the right length."""
    if dtype == "bf16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float32)
    if dtype == "int8":
        return dequantize(data[:SCALE_BYTES], np.frombuffer(data, np.int8, size, SCALE_BYTES))
    return np.frombuffer(data, "<f4" if dtype == "fp32" else "<f2").astype(np.float32)


def payload_bytes(size: int, dtype: str) -> int:
    """Length of `size` values; it is even."""
    scale = SCALE_BYTES if dtype == "int8" else 0
    return scale + size * _ITEM_BYTES[dtype] + is_padded(size, dtype)


def is_padded(size: int, dtype: str) -> bool:
    """Whether a zero byte follows so many values."""
    return dtype == "int8" and size % 2 == 0


def counts(payload: int, dtype: str) -> list[int]:
    """Return how many values so many bytes may be; one number but in int8, which may be filled up."""
    if dtype == "int8":
        about = [payload - SCALE_BYTES - 1, payload - SCALE_BYTES]
    else:
        about = [payload // _ITEM_BYTES[dtype]]
    return [size for size in about if size > 0 and payload == payload_bytes(size, dtype)]


def quantize(values: NDArray[np.float32]) -> tuple[bytes, NDArray[np.int8]]:
    """Return the scale (3 bytes) and q (int8 [n]) of `_scales` that come nearest to values [n].

    Values that are such products already come back as they are. Where one is not finite, the scale is NaN.
    """
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        return b"\x00\xc0\x7f", np.zeros(len(exact), np.int8)
    scale, q, least = 0.0, np.zeros(len(exact)), float(exact @ exact)
    for scales in _scales(exact) if least else ():
        room = np.floor(_LARGEST / np.abs(scales))  # a product that would overflow is none
        found = np.rint(exact / scales)
        found = np.clip(found, np.maximum(_LOWEST, -room), np.minimum(_HIGHEST, room))
        errors = np.square(exact - scales * found).sum(1)
        best = int(errors.argmin())
        if errors[best] < least:
            least, scale, q = float(errors[best]), float(scales[best, 0]), found[best]
    return np.float32(scale).astype("<f4").tobytes()[1:], q.astype(np.int8)


def dequantize(scale: bytes, q: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return float32 values [n]: scale * q, exactly, and no zero with a sign."""
    factor = np.frombuffer(b"\0" + scale, "<f4")[0]
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by name
        values: NDArray[np.float32] = (factor * q.astype(np.float32) + np.float32(0)).astype(np.float32)
    return values


def _scales(values: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield scales of 24 bits to choose from, in columns: positive ones first, and large ones.

    They lie on both sides of the largest value over each q that it may have, which finds values that are
    products already, and of that value over more than 128, where it is cut to the advantage of the others.
    """
    parts = np.abs(values).max() / np.concatenate([np.arange(1, -_LOWEST + 1), -_LOWEST * _CUT])
    below = np.minimum(parts, _LARGEST).astype("<f4").view("<u4") & np.uint32(0xFFFFFF00)
    both = np.concatenate([below, np.minimum(below + np.uint32(0x100), np.uint32(0x7F7FFF00))])
    scales = np.unique(both[both > 0]).view("<f4").astype(np.float64)[::-1]
    for part in np.array_split(scales, 1 + len(scales) * len(values) // _AT_ONCE):
        yield from (part[:, None], -part[:, None])
