"""The prior of a basis: mean and covariance of the vectors that people want."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import BasisError

_ROUNDING = 2.0**-24  # of a float32, relative
_ASYMMETRY = 2.0**-20  # of two entries that should be one, relative to their variances


@dataclass(frozen=True, eq=False)
class Prior:
    """The prior of a basis in the precision that computing with it takes.

    Attributes:
        mean: float64 [n].
        covariance: float64 [n, n], symmetric and positive definite.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @cached_property
    def precision(self) -> NDArray[np.float64]:
        """The inverse of the covariance: float64 [n, n]."""
        return np.asarray(np.linalg.inv(self.covariance), np.float64)

    @property
    def spread(self) -> NDArray[np.float64]:
        """How far vectors are from 0, whatever their signs: S with S S' the mean of v v', float64 [n, n]."""
        return np.asarray(np.linalg.cholesky(self.covariance + np.outer(self.mean, self.mean)), np.float64)

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal of the numbers, for states of runs: a digest covers no prior."""
        return hashlib.sha256(
            b"".join(part.astype("<f8").tobytes() for part in (self.mean, self.covariance))
        ).hexdigest()


def check_prior(mean: NDArray[np.float32] | None, covariance: NDArray[np.float32] | None, size: int) -> None:
    """Check the prior of a basis.

    The covariance is symmetric and positive definite, both beyond the rounding of float32: its entries
    [i, j] and [j, i] differ by at most 2^-20 sqrt(c_ii c_jj), and no pivot of its Cholesky decomposition is
    n 2^-24 c_ii or less. Whoever decomposes it in float64 then succeeds.

    Args:
        mean: float32 [n], or None where there is no prior.
        covariance: float32 [n, n], or None.
        size: n, the number of values.

    Raises:
        BasisError: one is there without the other, or has another shape or dtype, or no prior has it.
    """
    if mean is None and covariance is None:
        return
    if mean is None or covariance is None:
        there, missing = ("covariance", "mean") if mean is None else ("mean", "covariance")
        raise BasisError(f"the prior has a {there}, but no {missing}: pass both or neither")
    for what, array, shape in (("mean", mean, (size,)), ("covariance", covariance, (size, size))):
        if array.shape != shape or array.dtype != np.float32:
            raise BasisError(
                f"the {what} of the prior is {array.dtype} {array.shape}, but the vector has {size} values: "
                f"expected float32 {shape}"
            )
        if not np.isfinite(array).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise BasisError(
                f"entry {index} of the {what} of the prior is {array[index]}: every entry must be finite"
            )
    exact = covariance.astype(np.float64)
    variances = exact.diagonal()
    if not (variances > 0).all():
        axis = int(np.argmin(variances))
        raise BasisError(f"axis {axis} has variance {variances[axis]:.6g} in the prior: expected more than 0")
    deviations = np.sqrt(variances)
    apart = np.abs(exact - exact.T) - _ASYMMETRY * np.outer(deviations, deviations)
    if (apart > 0).any():
        i, j = (int(k) for k in np.unravel_index(int(np.argmax(apart)), apart.shape))
        raise BasisError(
            f"the covariance of the prior is not symmetric: entry ({i}, {j}) is {exact[i, j]:.6g}, and "
            f"({j}, {i}) is {exact[j, i]:.6g}"
        )
    share = _smallest_pivot(exact / np.outer(deviations, deviations))
    if share <= size * _ROUNDING:
        raise BasisError(
            "the covariance of the prior is not positive definite: the smallest pivot of its Cholesky "
            f"decomposition is {share:.3g} of its axis's variance, and more than {size * _ROUNDING:.3g} is "
            "needed. Add some to the diagonal"
        )


def _smallest_pivot(correlation: NDArray[np.float64]) -> float:
    """The smallest pivot of a Cholesky decomposition, or 0 where one is not positive."""
    try:
        factor = np.linalg.cholesky(correlation)
    except np.linalg.LinAlgError:
        return 0.0
    return float((factor.diagonal() ** 2).min())
