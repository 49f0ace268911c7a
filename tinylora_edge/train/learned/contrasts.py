"""Named axes: the direction in which a contrast moves the model, and no axis before it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainError
from .metric import Metric

Matrix = NDArray[np.float64]

DAMPING = 1.0
"""Times F's mean diagonal, which is added to F for the step of an axis: it is of few questions, and in what
costs little it would be their noise alone."""
CHANCE = 0.01
"""Highest probability of a contrast's length without a contrast."""
FEWEST = 8
"""Questions of a contrast: with fewer, no contrast is less likely than `CHANCE`."""
_OWN = 0.1
"""Least share of a step's squared length that is no earlier axis's: those have noise of their own."""
_PATTERNS = 4096


@dataclass(frozen=True)
class Axis:
    """A named axis, and what it was made of.

    Attributes:
        name: of the axis.
        length: of the step from the minus side to the plus side, in units of the axis, what the axes before
            it hold taken out.
        own: share of the step's squared length that the axes before it do not hold.
        signal: share of that squared length that is more than the noise of the questions makes on average.
    """

    name: str
    length: float
    own: float
    signal: float


def question_slopes(divergence: NDArray[np.float32], tokens: NDArray[np.int32]) -> Matrix:
    """Return what each question says of a lesson's slope: float64 [questions, D].

    Their mean is the slope, nats a token over all tokens. How they scatter is the noise of that mean, which
    is a ratio: a question counts by its tokens.

    Args:
        divergence: float32 [questions, M, r, r], slopes of the summed KL of each question.
        tokens: int32 [questions], how many were summed.
    """
    summed = divergence.reshape(len(divergence), -1).astype(np.float64)
    mean = summed.sum(0) / tokens.sum()
    found: Matrix = mean + (summed - tokens[:, None] * mean) / tokens.mean()
    return found


def named_axes(
    contrasts: Sequence[tuple[str, Matrix]], metric: Metric, damping: float = DAMPING
) -> tuple[tuple[Axis, ...], Matrix]:
    """Return named axes, and their directions in whitened coordinates: float64 [k, D], orthonormal.

    The natural-gradient step of the plus side less that of the minus side, less what the axes before hold,
    is made one unit of effect long.

    Args:
        contrasts: of each axis its name, and the slope of the plus side less that of the minus side by
            question: float64 [questions, D], at least `FEWEST`.
        metric: of R.
        damping: times F's mean diagonal is added to F for the step.

    Raises:
        TrainError: the sides do not differ above the noise of the questions, or only in what axes before
            them hold.
    """
    axes: list[Axis] = []
    size = len(metric.information)
    damped = metric.information + np.eye(size) * damping * np.trace(metric.information) / size
    directions = np.zeros((0, size))
    for name, slopes in contrasts:
        steps = -np.linalg.solve(damped, slopes.T).T @ metric.root
        left = steps - (steps @ directions.T) @ directions
        whole, rest = _squared(steps), _squared(left)
        if chance(steps) > CHANCE:
            raise TrainError(
                f"the contrast of axis {name!r} is empty: the steps of its sides differ by {whole**0.5:.3g}, "
                f"and noise of its questions alone makes {_noise(steps) ** 0.5:.3g}. Write teachers that the "
                "model follows and that say opposite things"
            )
        if chance(left) > CHANCE or rest < _OWN * whole:
            before = ", ".join(axis.name for axis in axes)
            raise TrainError(
                f"axis {name!r} is what the axes before it are already ({before}): {rest**0.5:.3g} of its "
                f"length of {whole**0.5:.3g} is left, and noise alone makes {_noise(left) ** 0.5:.3g}. Leave "
                "it out, or contrast something else"
            )
        axes.append(Axis(name, rest**0.5, rest / whole, 1 - _noise(left) / rest))
        directions = np.vstack([directions, left.mean(0) / rest**0.5])
    return tuple(axes), directions


def chance(steps: Matrix) -> float:
    """Return how likely a mean step of this length is where the sides do not differ.

    Then each question's step is as likely as its opposite. The share of all choices of signs whose mean is
    as long is exact for up to 12 questions; of more, 4,096 choices are drawn (Fisher's randomization test).

    Args:
        steps: float64 [questions, D].
    """
    count, gram = len(steps), steps @ steps.T
    if count <= 12:
        numbers = np.arange(2 ** (count - 1))
        signs = np.where(numbers[:, None] >> np.arange(count) & 1, -1, 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (_PATTERNS, count))
        signs[0] = 1
    squares = np.einsum("pi,ij,pj->p", signs, gram, signs, optimize=True)
    return float((squares >= squares[0] * (1 - 1e-9)).mean())


def _squared(steps: Matrix) -> float:
    return float((steps.mean(0) ** 2).sum())


def _noise(steps: Matrix) -> float:
    """Return the squared length that the mean would have, on average, if the truth were zero."""
    return float(steps.var(0, ddof=1).sum()) / len(steps)
