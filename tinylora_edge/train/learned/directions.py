"""Directions of R that are worth a number, found in what behaviours ask of R, and baselines for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainError


def learned_directions(solutions: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the directions in which solutions differ from zero the most: their first right singular vectors.

    Not centred: what all behaviours share is worth a number too. Signs are canonical: the entry of largest
    magnitude is positive.

    Args:
        solutions: float32 [K, M, r, r], R of each behaviour.
        count: n, how many directions.

    Returns:
        float32 [n, M, r, r], orthonormal.

    Raises:
        TrainError: there are fewer solutions than directions, or a solution is not finite.
    """
    flat = solutions.reshape(len(solutions), -1).astype(np.float64)
    if len(flat) < count:
        raise TrainError(
            f"{len(flat)} behaviours cannot teach {count} directions: give more behaviours, or ask for fewer "
            "directions"
        )
    if not np.isfinite(flat).all():
        raise TrainError("the R of a behaviour is not finite: learn with a smaller step size")
    found = np.linalg.svd(flat, full_matrices=False)[2][:count]
    return _canonical(found).reshape(count, *solutions.shape[1:])


def tiled_directions(solutions: NDArray[np.float32], tying: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return one learned direction for each tile of modules: each tile's first right singular vector.

    Args:
        solutions: float32 [K, M, r, r].
        tying: int32 [M], the tile of each module.

    Returns:
        float32 [G, M, r, r], orthonormal; direction g is zero outside of tile g.
    """
    found = np.zeros((int(tying.max()) + 1, *solutions.shape[1:]), np.float32)
    for tile in range(len(found)):
        inside = tying == tile
        found[tile, inside] = learned_directions(solutions[:, inside], 1)[0]
    return found


def random_directions(shape: tuple[int, ...], count: int, seed: int) -> NDArray[np.float32]:
    """Return random orthonormal directions, dense over all of R: a baseline.

    Args:
        shape: (M, r, r).
        count: n.
        seed: of the draw.

    Returns:
        float32 [n, M, r, r].
    """
    drawn = np.random.default_rng(seed).standard_normal((int(np.prod(shape)), count))
    return _canonical(np.linalg.qr(drawn)[0].T).reshape(count, *shape)


def coordinates(solutions: NDArray[np.float32], directions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return where solutions lie in orthonormal directions: float64 [K, n].

    Args:
        solutions: float32 [K, M, r, r].
        directions: float32 [n, M, r, r].
    """
    flat = solutions.reshape(len(solutions), -1).astype(np.float64)
    found: NDArray[np.float64] = flat @ directions.reshape(len(directions), -1).astype(np.float64).T
    return found


def prior_of(places: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and covariance of vectors that behaviours asked for: the prior of the next one.

    The covariance has a tenth of its mean variance more on the diagonal, so that a few behaviours rule no
    direction out.

    Args:
        places: float64 [K, n], K at least 2.

    Returns:
        float32 [n] and float32 [n, n], symmetric and positive definite.
    """
    mean = places.mean(0)
    covariance = np.cov(places, rowvar=False, ddof=1).reshape(len(mean), len(mean))
    covariance = covariance + np.eye(len(mean)) * 0.1 * max(float(np.trace(covariance)) / len(mean), 1e-12)
    return mean.astype(np.float32), ((covariance + covariance.T) / 2).astype(np.float32)


def _canonical(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    peaks = rows[np.arange(len(rows)), np.abs(rows).argmax(1)]
    signed: NDArray[np.float32] = (rows * np.sign(peaks)[:, None]).astype(np.float32)
    return signed
