"""Weights for the tests of truncated_svd, what it promises of them, and its residual computed in float64."""

from __future__ import annotations

import numpy as np

from tinylora_edge.factorization import TruncatedSVD

TOL = 1e-3  # the default of truncated_svd
VALUES = 1e-4  # relative error of singular values that the project promises
ROUNDING = 5e-6  # of float32 results, on top of a measured residual


def weight_like(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    few = min(*shape, 6)
    left, right = rng.standard_normal((shape[0], few)), rng.standard_normal((few, shape[1]))
    strength = 0.8 ** np.arange(few) / np.sqrt(max(shape))
    return (rng.standard_normal(shape) / np.sqrt(max(shape)) + (left * strength) @ right).astype(np.float32)


def residual(weight: np.ndarray, svd: TruncatedSVD) -> float:
    w, (u, s, v) = weight.astype(np.float64), (part.astype(np.float64) for part in svd)
    right = np.linalg.norm(w @ v - u * s, axis=0)
    left = np.linalg.norm(w.T @ u - v * s, axis=0)
    return float((np.maximum(right, left) / s).max())
