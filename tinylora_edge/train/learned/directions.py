"""Directions of R that are worth a number, found in what behaviours ask of R."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainError
from .metric import Metric

Matrix = NDArray[np.float64]

_WEAK = 1.0
"""Squared length, in units of effect, of a step that is mostly noise: it counts half."""


@dataclass(frozen=True, repr=False)
class Found:
    """Directions, and where behaviours lie in them.

    Attributes:
        directions: float32 [n, D], D = M r^2: orthonormal in the metric, so that a unit is a unit of effect.
        places: float64 [K, n], the step of each behaviour in them.
        shares: float64 [K], share of the squared length of each behaviour's step that they hold.
        energy: float64 [n], share of all behaviours' squared lengths, as they count, that each holds.
    """

    directions: NDArray[np.float32]
    places: Matrix
    shares: Matrix
    energy: Matrix


def learned_directions(
    slopes: NDArray[np.float32], metric: Metric, count: int, named: Matrix | None = None
) -> Found:
    """Return the directions in which steps of steepest descent differ from zero the most.

    A step is -F^-1 g (the natural gradient). In whitened coordinates its squared length is twice the nats
    that it promises, and noise is alike in all directions. Each step is shortened to at most 1, so that a
    task that the bare model fails outright does not fill the basis alone. Not centred: what all behaviours
    share is worth a number too. Signs are canonical: the entry of largest magnitude is positive. Where some
    directions are given already, the others are found in what those leave of the behaviours.

    Args:
        slopes: float32 [K, D], of the KL of each behaviour, in nats a token.
        metric: of R.
        count: n, how many directions.
        named: float64 [k, D], k at most n: the first directions, orthonormal in whitened coordinates. They
            keep their signs.

    Raises:
        TrainError: there are fewer behaviours than directions to find, or a slope is not finite.
    """
    first = np.zeros((0, slopes.shape[1])) if named is None else named
    missing = count - len(first)
    if len(slopes) < missing:
        raise TrainError(
            f"{len(slopes)} behaviours cannot teach {missing} directions: give more behaviours, or ask for "
            "fewer directions"
        )
    if not np.isfinite(slopes).all():
        raise TrainError("the slope of a behaviour is not finite: the model computes infinities or NaN")
    steps = -slopes.astype(np.float64) @ metric.inverse_root
    weighted = _weighted(steps)
    left = weighted - (weighted @ first.T) @ first
    axes = np.vstack([first, np.linalg.svd(left, full_matrices=False)[2][:missing]])
    return _found(axes, axes @ metric.inverse_root, steps, weighted, len(first))


def tiled_directions(slopes: NDArray[np.float32], metric: Metric, tying: NDArray[np.int32]) -> Found:
    """Return one learned direction for each tile: the first one of the tile's own entries.

    Args:
        slopes: float32 [K, D].
        metric: of R.
        tying: int32 [D], the tile of each entry of R.

    Raises:
        TrainError: as `learned_directions` does.
    """
    directions = np.zeros((int(tying.max()) + 1, slopes.shape[1]))
    for tile in range(len(directions)):
        inside = np.flatnonzero(tying == tile)
        own = metric.within(inside)
        directions[tile, inside] = learned_directions(slopes[:, inside], own, 1).directions[0]
    steps = -slopes.astype(np.float64) @ metric.inverse_root
    # not orthogonal in the metric of all R: their span is what holds a share
    axes = np.linalg.qr((directions @ metric.root).T)[0].T
    found = _found(axes, directions, steps, _weighted(steps))
    gram = directions @ metric.information @ directions.T
    places = -slopes.astype(np.float64) @ np.linalg.solve(gram, directions).T
    return Found(directions.astype(np.float32), places, found.shares, found.energy)


def prior_of(places: Matrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and covariance of vectors that behaviours asked for: the prior of the next one.

    Places are shortened as steps are. The covariance has a tenth of its mean variance more on the diagonal,
    so that a few behaviours rule no direction out.

    Args:
        places: float64 [K, n], K at least 2.

    Returns:
        float32 [n] and float32 [n, n], symmetric and positive definite.
    """
    places = _weighted(places)
    mean = places.mean(0)
    covariance = np.cov(places, rowvar=False, ddof=1).reshape(len(mean), len(mean))
    covariance = covariance + np.eye(len(mean)) * 0.1 * max(float(np.trace(covariance)) / len(mean), 1e-12)
    return mean.astype(np.float32), ((covariance + covariance.T) / 2).astype(np.float32)


def _weighted(steps: Matrix) -> Matrix:
    weighted: Matrix = steps / np.sqrt((steps**2).sum(1, keepdims=True) + _WEAK)
    return weighted


def _found(axes: Matrix, directions: Matrix, steps: Matrix, weighted: Matrix, named: int = 0) -> Found:
    peaks = directions[np.arange(len(directions)), np.abs(directions).argmax(1)]
    signs = np.sign(peaks)[:, None]
    signs[:named] = 1
    places = steps @ (axes * signs).T
    shares = (places**2).sum(1) / np.maximum((steps**2).sum(1), 1e-30)
    energy = ((weighted @ axes.T) ** 2).sum(0) / max(float((weighted**2).sum()), 1e-30)
    return Found((directions * signs).astype(np.float32), places, shares, energy)
