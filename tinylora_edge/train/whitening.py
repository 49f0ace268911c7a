"""Coordinates of R in which a step of Adam is as large in every direction.

Adam's steps are as long in every coordinate, while R's columns read directions of x that differ a
hundredfold in their strength, and its rows write ones that matter as unequally. So steps are taken by R' with
R = D^-1/2 R' C^-1/2: C is the second moment of A x and D that of B' d, for inputs x of a module and gradients
d at its output (K-FAC's factors, on the span of the baked directions: Martens and Grosse, "Optimizing Neural
Networks with Kronecker-factored Approximate Curvature", arXiv 1503.05671). What is learned and written is R.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..prior import Whitening
from .learner import Group, Learner

DAMPING = 0.01
"""Of the mean eigenvalue, added to every one: directions that few prompts use may be of use later."""


FEWEST = 3
"""Inputs of a module that are whitened: of 1 or 2 the loss was lower without (1.14 nats for 1.17 at best)."""


class ModuleWhitening:
    """R = left R' right in every module, for v that is R: `left` is float64 [M, p, p], `right` [M, q, q]."""

    def __init__(self, left: NDArray[np.float64], right: NDArray[np.float64]) -> None:
        self.left, self.right = left, right

    def values(self, z: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return v of coordinates, or of differences of them: [n]."""
        shape = len(self.left), self.left.shape[-1], self.right.shape[-1]
        return (self.left @ z.reshape(shape) @ self.right).reshape(-1)

    gradient = values
    """The gradient by the coordinates of one by v, [n]: both sides are symmetric."""


def whitened(learner: Learner, groups: Callable[[], Sequence[Group]]) -> Whitening | ModuleWhitening:
    """Return the coordinates to train the learner's adapter in, as its v is now.

    Where v is not all of R, or R is of few inputs, they are those of its prior, if it has one.

    Args:
        learner: its passes give both moments.
        groups: makes the completions whose likelihood says which directions matter.
    """
    basis = learner.adapter.basis
    p, q = basis.shape
    if q < FEWEST or basis.size != len(basis.modules) * p * q:
        return basis.whitening
    moments = learner.moments(groups())
    strengths = [np.square(b[..., :p], dtype=np.float64).sum(-2) for b in basis.factors.b]
    lefts, rights = [], []
    for (c, d), strength in zip(moments, strengths, strict=True):
        right, left = _inverse_root(c), _inverse_root(d)
        gram = strength.reshape(-1, p).sum(0)  # B'B, which is diagonal, of all experts
        before = gram.sum() * c.trace()  # E|B R A x|^2 of a unit R, and of a unit R'
        after = np.einsum("ij,j,ij", left, gram, left) * np.einsum("ij,jk,ki", right, c, right)
        lefts.append(left * np.sqrt(before / after) if after > 0 else np.eye(p))
        rights.append(right if after > 0 else np.eye(q))
    return ModuleWhitening(np.stack(lefts), np.stack(rights))


def _inverse_root(moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse square root of a damped second moment; zeros where there is nothing."""
    values, vectors = np.linalg.eigh(moment)
    values = np.maximum(values, 0)
    damped = values + DAMPING * values.mean()
    return np.asarray((vectors / np.sqrt(damped)) @ vectors.T if damped.all() else np.zeros_like(moment))
