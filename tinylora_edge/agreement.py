"""Agreement: whether factors are those of a weight, though it was quantized in between."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from .factorization import RowSource

AGREEMENT = 0.3
"""Largest |W v - s u| / s at which a weight counts as the one that was factorized.

Quantization to 2 bits gave up to 0.16; another row order or another model gives 1 and more.
"""

_ROWS = 512  # of a weight that are read at a time


def directions(a: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the right singular vectors in A, and what B has to be multiplied with to be U S.

    Args:
        a: A, float32 [r, in], rows orthogonal.

    Returns:
        v, float32 [in, r], and the norms of A's rows, float32 [r]: 1 for the factorization `left`, the roots
        of the singular values for `sqrt`.
    """
    norms: NDArray[np.float32] = np.linalg.norm(a, axis=1)
    return (a / norms[:, None]).T, norms


def gap(product: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return max over triplets of |W v - s u| / |s u|; inf where a value is not finite.

    Args:
        product: W v, float32 [rows, r]; all rows of the weight, or some.
        expected: s u, float32 [rows, r], the same rows.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.linalg.norm(product - expected, axis=0) / np.linalg.norm(expected, axis=0)
    return float(found.max()) if np.isfinite(found).all() else inf


def distance(a: NDArray[np.float32], b: NDArray[np.float32], matrices: Sequence[RowSource]) -> float:
    """Return how far a weight is from its factors: `gap` of the worst matrix; inf where shapes differ.

    Args:
        a: A, float32 [r, in], or [experts, r, in]; rows are orthogonal.
        b: B, float32 [out, r], or [experts, out, r], rows in the order of the weight's.
        matrices: the weight, one matrix an expert.
    """
    shape = (b.shape[-2], a.shape[-1])
    if any(matrix.shape != shape for matrix in matrices) or len(matrices) != a[..., 0, 0].size:
        return inf
    worst = 0.0
    pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), matrices, strict=True)
    for one_a, one_b, matrix in pairs:
        v, norms = directions(one_a.astype(np.float32))
        starts = range(0, shape[0], _ROWS)
        product = np.concatenate([matrix.rows(i, min(i + _ROWS, shape[0])) @ v for i in starts])
        worst = max(worst, gap(product, one_b.astype(np.float32) * norms))
    return worst
