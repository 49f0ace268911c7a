"""The coordinates in which a prior is round: v = L z, as every search and every step of v takes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUND = 1e-6  # of a covariance that is isotropic but for rounding, relative to its mean variance


class Whitening:
    """A change of coordinates v = L z, in which all directions are as likely to be wanted.

    L L' is the covariance of the prior divided by its mean variance, so that z has the unit of v: a step of
    N(0, s^2) an entry of z is one of mean variance s^2 an entry of v. Without a prior, and where the
    covariance is c I, v is z: what goes in comes out, the same array.

    Args:
        covariance: float [n, n], symmetric and positive definite; None for none.

    Attributes:
        matrix: L, float64 [n, n], lower triangular with a positive diagonal; None where v is z.
    """

    def __init__(self, covariance: NDArray[Any] | None = None) -> None:
        self.matrix: NDArray[np.float64] | None = None
        if covariance is None:
            return
        exact = covariance.astype(np.float64)
        size = len(exact)
        scaled = exact / (math.fsum(exact.diagonal()) / size)
        if np.abs(scaled - np.eye(size)).max() > _ROUND:
            self.matrix = np.asarray(np.linalg.cholesky((scaled + scaled.T) / 2), np.float64)

    @property
    def isotropic(self) -> bool:
        """Whether v is z."""
        return self.matrix is None

    def values(self, z: NDArray[Any]) -> NDArray[Any]:
        """Return v = L z, float64 [..., n].

        Args:
            z: coordinates, or differences of them, float [..., n].
        """
        return z if self.matrix is None else z.astype(np.float64) @ self.matrix.T

    def coordinates(self, v: NDArray[Any]) -> NDArray[Any]:
        """Return z with v = L z, float64 [..., n].

        Args:
            v: values, or differences of them, float [..., n].
        """
        if self.matrix is None:
            return v
        rows = v.astype(np.float64).reshape(-1, v.shape[-1])
        return np.linalg.solve(self.matrix, rows.T).T.reshape(v.shape)

    def gradient(self, by_v: NDArray[Any]) -> NDArray[Any]:
        """Return a gradient with respect to z, float64 [..., n]: L' times the one with respect to v.

        Args:
            by_v: float [..., n].
        """
        return by_v if self.matrix is None else by_v.astype(np.float64) @ self.matrix
