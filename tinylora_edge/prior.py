"""The prior of a projection: mean and covariance of the vectors that people want, coordinates that fit it.

The function v -> dW does not depend on it, so no digest covers it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BasisError

_ROUNDING = 2.0**-24  # of a float32, relative
_ASYMMETRY = 2.0**-20  # of two entries that should be one, relative to their variances
_ROUND = 1e-6  # of a covariance that is isotropic but for rounding, relative to its mean variance


@dataclass(frozen=True, eq=False)
class Prior:
    """Mean [n] and covariance [n, n] of the vectors that people want, in float64, exactly symmetric."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, mean: ArrayLike, covariance: ArrayLike, size: int) -> Prior:
        """Return the prior of a projection of n = `size` numbers; what is stored is float32.

        Raises:
            BasisError: those of `check_prior`.
        """
        with np.errstate(over="ignore"):  # infinity is refused
            mean, covariance = np.asarray(mean, np.float32), np.asarray(covariance, np.float32)
        check_prior(mean, covariance, size)
        half = covariance / np.float32(2)
        return cls(mean.astype(np.float64), (half + half.T).astype(np.float64))

    @cached_property
    def precision(self) -> NDArray[np.float64]:
        """The inverse of the covariance: float64 [n, n]."""
        return np.asarray(np.linalg.inv(self.covariance), np.float64)

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal of the numbers, for the states of runs."""
        return hashlib.sha256(
            b"".join(part.astype("<f8").tobytes() for part in (self.mean, self.covariance))
        ).hexdigest()


class Whitening:
    """A change of coordinates v = L z, in which all directions are as likely to be wanted.

    L L' is the covariance of the prior divided by its mean variance, so that z has the unit of v. Without a
    prior, and where the covariance is c I, v is z: what goes in comes out, the same array.

    Attributes:
        matrix: L, float64 [n, n], lower triangular with a positive diagonal; None where v is z.
    """

    def __init__(self, prior: Prior | None = None) -> None:
        self.matrix: NDArray[np.float64] | None = None
        if prior is None:
            return
        size = len(prior.mean)
        scaled = prior.covariance / (math.fsum(prior.covariance.diagonal()) / size)
        if np.abs(scaled - np.eye(size)).max() > _ROUND:
            self.matrix = np.asarray(np.linalg.cholesky(scaled), np.float64)

    def values(self, z: NDArray[Any]) -> NDArray[Any]:
        """Return v = L z of coordinates, or of differences of them: float [..., n]."""
        return z if self.matrix is None else z.astype(np.float64) @ self.matrix.T

    def coordinates(self, v: NDArray[Any]) -> NDArray[Any]:
        """Return z with v = L z of values, or of differences of them: float [..., n]."""
        if self.matrix is None:
            return v
        rows = v.astype(np.float64).reshape(-1, v.shape[-1])
        return np.linalg.solve(self.matrix, rows.T).T.reshape(v.shape)

    def gradient(self, by_v: NDArray[Any]) -> NDArray[Any]:
        """Return a gradient with respect to z, float [..., n]: L' times the one with respect to v."""
        return by_v if self.matrix is None else by_v.astype(np.float64) @ self.matrix


def check_prior(mean: NDArray[np.float32], covariance: NDArray[np.float32], size: int) -> None:
    """Check the prior of a projection of n = `size` numbers: float32 [n] and [n, n].

    The covariance is symmetric and positive definite, both beyond the rounding of float32: its entries
    [i, j] and [j, i] differ by at most 2^-20 sqrt(c_ii c_jj), and no pivot of its Cholesky decomposition is
    n 2^-24 c_ii or less. Whoever decomposes it in float64 then succeeds.

    Raises:
        BasisError: it is no such pair.
    """
    for what, array, shape in (("mean", mean, (size,)), ("covariance", covariance, (size, size))):
        if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
            raise BasisError(
                f"the {what} of the prior is {array.dtype} {array.shape}: expected finite float32 {shape}"
            )
    exact = covariance.astype(np.float64)
    deviations = np.sqrt(np.maximum(exact.diagonal(), 0))
    units = np.outer(deviations, deviations)
    if not units.all() or (np.abs(exact - exact.T) > _ASYMMETRY * units).any():
        raise BasisError(
            "the covariance of the prior is not symmetric, or has a variance that is not above 0"
        )
    try:
        share = float((np.linalg.cholesky(exact / units).diagonal() ** 2).min())
    except np.linalg.LinAlgError:
        share = 0.0
    if share <= size * _ROUNDING:
        raise BasisError(
            "the covariance of the prior is not positive definite: the smallest pivot of its Cholesky "
            f"decomposition is {share:.3g} of its value's variance, and more than {size * _ROUNDING:.3g} is "
            "needed. Add some to the diagonal"
        )
