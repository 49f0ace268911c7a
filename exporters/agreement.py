"""Whether factors are those of a weight, though it was quantized in between."""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import NDArray

from ..basis import Basis
from ..errors import BaseMismatchError
from ..factorization import RowSource
from ..formats.gguf import GGUFFile

AGREEMENT = 0.3
"""Largest |W v - s u| / s at which a deployed weight counts as the one that was factorized.

Quantization to 2 bits gave up to 0.16; another row order or another model gives 1 and more.
"""


def distance(a: NDArray[np.float32], b: NDArray[np.float32], matrices: list[RowSource]) -> float:
    """Return how far a weight is from its factors: max over triplets of |W v - s u| / s; inf for NaN.

    Args:
        a: A [r, in], or [experts, r, in]; rows are orthogonal.
        b: B [out, r], or [experts, out, r], rows in the order of the weight's.
        matrices: the weight, one matrix an expert.
    """
    expected_shape = (b.shape[-2], a.shape[-1])
    if any(matrix.shape != expected_shape for matrix in matrices) or len(matrices) != a[..., 0, 0].size:
        return inf
    worst = 0.0
    pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), matrices, strict=True)
    for one_a, one_b, matrix in pairs:
        one_a, one_b = one_a.astype(np.float32), one_b.astype(np.float32)
        norms = np.linalg.norm(one_a, axis=1)
        v = (one_a / norms[:, None]).T
        product = np.concatenate([matrix.rows(i, min(i + 512, matrix.shape[0])) @ v for i in _steps(matrix)])
        expected = one_b * norms  # (U sqrt(S)) sqrt(S), or (U S) 1
        gap = np.linalg.norm(product - expected, axis=0) / np.linalg.norm(expected, axis=0)
        worst = max(worst, float(gap.max()) if np.isfinite(gap).all() else inf)
    return worst


def check_shapes(base: GGUFFile, basis: Basis) -> None:
    """Check that a GGUF has a basis's architecture and every module of it, in its shape.

    Raises:
        BaseMismatchError: the architecture differs, or a module is missing or has another shape.
    """
    if base.architecture != basis.architecture:
        raise BaseMismatchError(
            f"the base has architecture {base.architecture!r}, but the basis is for {basis.architecture!r}"
        )
    for position, module in enumerate(basis.modules):
        a, b = basis.a[position], basis.b[position]
        expected = (*b.shape[:-1], a.shape[-1])
        tensor = base.tensors.get(module)
        if tensor is None or tensor.shape != expected:
            found = "no such tensor" if tensor is None else f"shape {tensor.shape}"
            raise BaseMismatchError(f"{module} has shape {expected} in the basis, but {found} in the base")


def _steps(matrix: RowSource) -> range:
    return range(0, matrix.shape[0], 512)
