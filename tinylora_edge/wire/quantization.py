"""Values in int8: n numbers of 8 bits and one scale of 24, v = scale * q (docs/FORMAT.md, "int8 values").

The scale is the upper 24 bits of a float32, sign included: 16 significant bits. Its product with a q of 8
bits is therefore exact in float32, and every reader has the same values. A writer may choose any scale; this
one chooses that of the least squared error.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SCALE_BYTES = 3

_LOWEST, _HIGHEST = -128, 127
_EXACT_VALUES = 1 << 12  # up to so many every scale that changes a q is looked at: 128 a value
_CANDIDATES = 8
_AT_ONCE = 1 << 20
_LARGEST = float(np.finfo(np.float32).max)


def quantize(values: NDArray[np.float32]) -> tuple[bytes, NDArray[np.int8]]:
    """Return the scale (3 bytes) and q (int8 [n]) that come nearest to values [n] in squared error.

    Of scales that come equally near, a positive one is taken, and the largest. Values that are such products
    already come back as they are. Where a value is not finite, the scale is NaN.
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
    """Yield the scales among which the best one is, in columns: positive ones first, and large ones.

    Among them is the largest value over each q that it may have. Where the values are products already, that
    finds them; where all have one magnitude, say, any q would do but for the rounding of the scale.
    """
    parts = np.abs(values).max() / np.arange(1, -_LOWEST + 1)
    search = _turning_points if len(values) <= _EXACT_VALUES else _clipping
    for sign in (1.0, -1.0):
        scales = sign * _neighbours(np.concatenate([search(sign * values), parts]))[::-1]
        for part in np.array_split(scales, 1 + len(scales) * len(values) // _AT_ONCE):
            yield part[:, None]


def _turning_points(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the best scales > 0 of q in [-128, 127].

    As the scale falls, one |q| after the other rises by 1, at scale = |v| / (|q| + 1/2). Between two such
    points q stays, and the best scale for it is <v, q> / <q, q>, of squared error <v, v> - <v, q>^2 / <q, q>.
    Both products grow by one term at each point, so that running sums go through every q that there is.
    """
    size = np.abs(values)
    half = np.arange(-_LOWEST) + 0.5
    reachable = half < np.where(values < 0, -_LOWEST, _HIGHEST)[:, None]
    points = (size[:, None] / half)[reachable]
    order = np.argsort(-points, kind="stable")
    along = np.cumsum(np.broadcast_to(size[:, None], reachable.shape)[reachable][order])
    squares = np.cumsum(np.broadcast_to(2 * half, reachable.shape)[reachable][order])
    best = np.argsort(-(along**2 / squares), kind="stable")[:_CANDIDATES]
    scales: NDArray[np.float64] = along[best] / squares[best]
    return scales


def _clipping(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return scales > 0 under that of the largest value, for so many values that steps of 7 % miss little."""
    scales: NDArray[np.float64] = np.abs(values).max() / -_LOWEST * 0.93 ** np.arange(1, 32)
    return scales


def _neighbours(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scales of 24 bits on both sides of ones > 0, rising, each once and without 0."""
    below = np.minimum(scales, _LARGEST).astype("<f4").view("<u4") & np.uint32(0xFFFFFF00)
    both = np.concatenate([below, np.minimum(below + np.uint32(0x100), np.uint32(0x7F7FFF00))])
    return np.unique(both[both > 0]).view("<f4").astype(np.float64)
