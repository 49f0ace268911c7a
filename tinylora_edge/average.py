"""Averages of users' micro-vectors: federated averaging, with clipping and noise by choice."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .axes import Prior
from .errors import VectorError
from .vector import MicroVector

ADJACENCIES: tuple[str, ...] = ("replace-one", "add-or-remove")
"""What two neighbouring sets of users differ in; see `sensitivity`."""


def average(
    vectors: Sequence[MicroVector],
    *,
    weights: Sequence[float] | None = None,
    clip: float = math.inf,
    noise_multiplier: float = 0.0,
    adjacency: str = "replace-one",
    prior: Prior | None = None,
    dtype: str | None = None,
    sequence: int | None = None,
    seed: int | None = None,
) -> MicroVector:
    """Return the weighted mean of users' micro-vectors of one basis (McMahan et al., 2017, FedAvg).

    With noise this is one round of DP-FedAvg (McMahan et al., 2018): every vector is scaled down to norm
    `clip`, and every value of the mean gets Gaussian noise of standard deviation `noise_multiplier` times
    `sensitivity(...)`. `tinylora_edge.privacy` says which (epsilon, delta) that is. It protects against
    whoever sees the mean, not against whoever computes it.

    Floating point: the noise is drawn from the operating system's generator as a sum of four Gaussians of
    53-bit uniforms (Holohan and Braghin, 2021), in float64, and the sum is rounded to the vector's dtype.
    That leaves no bits to attack by known means (Mironov, 2012), but the proof of (epsilon, delta) is for
    real numbers: where an exact proof is demanded, use a discrete mechanism.

    Args:
        vectors: one a user; all [G, u] of one basis. That they are is the caller's to check:
            `MicroVector.from_bytes` refuses a frame of another basis.
        weights: one a vector, finite and above 0; the same for all by default. With noise they must be
            public: a weight that is a count of a user's data tells of it.
        clip: largest Euclidean norm with which a vector counts. Infinite: none is scaled.
        noise_multiplier: standard deviation of the noise over the sensitivity; 0 for none.
        adjacency: what `sensitivity` is about: `replace-one` or `add-or-remove`.
        prior: `basis.prior`, to take noise out of the mean again: see `shrunk`. It must be public, as one
            learned without these users is; what is then done to a private mean leaves it as private.
        dtype: of the mean; by default that of the vectors where they agree, else fp32.
        sequence: of the mean; by default one above the highest of the vectors, so that a device that
            accepted any of them accepts the mean.
        seed: for tests alone: the noise then comes from Python's generator, which protects nobody.

    Raises:
        VectorError: no vectors; shapes that differ; weights or options out of their range; noise without a
            finite `clip` or over a single vector; a prior of another size, or without noise; a sequence that
            would pass 65535.
        NonFiniteError: the mean does not fit the dtype.
    """
    if not vectors:
        raise VectorError("there is nothing to average: pass at least one vector")
    shapes = [vector.values.shape for vector in vectors]
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise VectorError(
                f"vector {index} has shape {shape}, but vector 0 has {shapes[0]}: only vectors of one basis "
                "can be averaged"
            )
    shares = _shares(weights, len(vectors))
    if not clip > 0:
        raise VectorError(f"vectors are clipped to a norm above 0, not to {clip}")
    if not (0 <= noise_multiplier < math.inf):
        raise VectorError(f"the noise multiplier is finite and at least 0, not {noise_multiplier}")
    deviation = 0.0
    if noise_multiplier:
        if len(vectors) == 1:
            raise VectorError(
                "one vector cannot hide among others: noise needs at least two vectors, but there is 1"
            )
        if math.isinf(clip):
            raise VectorError("noise needs vectors of bounded norm: pass clip=... too")
        deviation = noise_multiplier * sensitivity(
            clip, count=len(vectors), weights=weights, adjacency=adjacency
        )
    elif adjacency not in ADJACENCIES:
        raise VectorError(_unknown(adjacency))
    if prior is not None:
        _check_prior(prior, vectors[0].values.size, deviation)
    if sequence is None:
        sequence = max(vector.sequence for vector in vectors) + 1
        if sequence > 0xFFFF:
            raise VectorError(
                "a vector has sequence 65535, and no higher one is left for the mean: begin a new stream, "
                "and pass the mean's sequence"
            )
    dtypes = {vector.dtype for vector in vectors}
    mean = np.zeros(shapes[0], np.float64)
    for share, vector in zip(shares, vectors, strict=True):
        norm = vector.norm
        mean += vector.values.astype(np.float64) * (share * min(1.0, clip / norm) if norm else share)
    if deviation:
        mean += _noise(mean.size, deviation, seed).reshape(mean.shape)
    if prior is not None:
        mean[:] = shrunk(mean.reshape(-1), deviation, prior).reshape(mean.shape)
    with np.errstate(over="ignore"):  # what does not fit is refused by name
        values = mean.astype(np.float32)
    return MicroVector(values, dtype or (dtypes.pop() if len(dtypes) == 1 else "fp32"), sequence)


def sensitivity(
    clip: float,
    *,
    count: int,
    weights: Sequence[float] | None = None,
    adjacency: str = "replace-one",
) -> float:
    """Return how far one user can move the mean: the largest Euclidean norm of its change.

    With C = `clip`, and s the largest weight over the sum of all weights (1/n where all are the same):

    - `replace-one`: another user takes a user's place, with another vector and the same weight. 2 C s.
    - `add-or-remove`: a user stays away, and counts as the vector of zeros: the sum of weights that the
      mean is divided by is public and stays. C s. Where the divisor is the sum over those who are there,
      use `replace-one`: 2 C s bounds that change too.

    Args:
        clip: C, finite and above 0.
        count: n, the number of vectors.
        weights: one a vector.
        adjacency: one of the two.

    Raises:
        VectorError: a value out of its range.
    """
    if adjacency not in ADJACENCIES:
        raise VectorError(_unknown(adjacency))
    if not 0 < clip < math.inf:
        raise VectorError(
            f"without a finite norm above 0 to clip to nothing bounds the mean, and it is {clip}"
        )
    return (2 if adjacency == "replace-one" else 1) * clip * max(_shares(weights, count))


def shrunk(noisy: NDArray[np.float64], deviation: float, prior: Prior) -> NDArray[np.float64]:
    """Return what a noisy mean most likely was: its posterior mean under the prior of one vector.

    With the prior N(m, C) and noise of variance s^2 on every value, m + C (C + s^2 I)^-1 (noisy - m): a value
    moves towards m the more, the less its axis varies between the vectors that people want. C is that of one
    vector, and not of the mean of many: what a group of users shares may lie as far from m as what one user
    wants. That shrinks less than the theory of users drawn from the prior at random.

    Args:
        noisy: float64 [n].
        deviation: s, above 0.
        prior: of the basis.
    """
    return prior.mean + _gain(deviation, prior) @ (noisy - prior.mean)


def kept(deviation: float, prior: Prior) -> float:
    """Return how much of a noisy mean `shrunk` keeps, the rest being the prior's mean: from 0 to 1."""
    return float(np.trace(_gain(deviation, prior)) / len(prior.mean))


def _gain(deviation: float, prior: Prior) -> NDArray[np.float64]:
    observed = prior.covariance + deviation**2 * np.eye(len(prior.mean))
    return np.asarray(np.linalg.solve(observed, prior.covariance).T, np.float64)


def _check_prior(prior: Prior, size: int, deviation: float) -> None:
    if len(prior.mean) != size:
        raise VectorError(f"the prior is of {len(prior.mean)} values, but the vectors have {size}")
    if not deviation:
        raise VectorError(
            "a prior takes noise out of a mean, and this one gets none: add noise, or leave the prior out"
        )


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return the weights as shares of their sum."""
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise VectorError(f"{count} vectors need as many weights, not {len(weights)}")
    for index, weight in enumerate(weights):
        if not 0 < weight < math.inf:
            raise VectorError(f"weight {index} is {weight}: weights are finite and above 0")
    highest = max(weights)
    total = math.fsum(weight / highest for weight in weights)
    return [weight / highest / total for weight in weights]


def _noise(size: int, deviation: float, seed: int | None) -> NDArray[np.float64]:
    source = random.SystemRandom() if seed is None else random.Random(seed)
    # Half the sum of four: an output no longer tells which pair of uniforms it came from.
    return np.array([sum(source.gauss(0.0, deviation) for _ in range(4)) / 2 for _ in range(size)])


def _unknown(adjacency: str) -> str:
    return f"unknown adjacency {adjacency!r}: choose one of {', '.join(ADJACENCIES)}"
