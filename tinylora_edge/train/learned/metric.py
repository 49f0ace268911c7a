"""A metric of R: how many nats a change of R costs, so that directions can be compared by their effect.

Near R = 0 the KL divergence of the changed model from the base is 1/2 R^T F R nats a token, F being the
Fisher information of the model's next token (Amari, "Natural gradient works efficiently in learning", 1998).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]

SHRINKAGE = 0.1
"""Times F's mean diagonal, which is added to all of it: what few samples call free is not."""


@dataclass(frozen=True, repr=False)
class Metric:
    """The Fisher information F of R, as a square root and its inverse.

    Attributes:
        information: float64 [D, D], symmetric and positive definite, D = M r^2, in nats a token.
        root: float64 [D, D], symmetric, the square root of F.
        inverse_root: float64 [D, D], its inverse.
    """

    information: Matrix
    root: Matrix
    inverse_root: Matrix

    @classmethod
    def of(cls, scores: ArrayLike, tokens: int, shrinkage: float = SHRINKAGE) -> Metric:
        """Return the metric that scores estimate.

        Args:
            scores: [K, D], each the slope of the summed log-probability of tokens drawn from the model.
            tokens: that were drawn, in all scores together.
            shrinkage: times the mean diagonal is added to the diagonal.
        """
        flat = np.asarray(scores, np.float64)
        found = flat.T @ flat / tokens
        found[np.diag_indices_from(found)] += shrinkage * float(np.trace(found)) / len(found)
        return cls._of(found)

    def within(self, entries: NDArray[np.int64]) -> Metric:
        """Return the metric of some entries of R alone."""
        return self._of(self.information[np.ix_(entries, entries)])

    @classmethod
    def _of(cls, information: Matrix) -> Metric:
        values, vectors = np.linalg.eigh(information)
        return cls(information, (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T)
