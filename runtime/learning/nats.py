"""How far vectors move the model, in nats: the sigma that has an effect, and the anchor that holds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...tasks import Sample
from ...tasks.general import load_general
from ...vector import MicroVector
from ..batch import Batch

ANCHOR_PROMPTS, ANCHOR_TOKENS = 8, 12

_MOST = 10.0  # nats: the ratio of one token must not overflow
_ROUNDS = 4  # sigmas that are tried at most
_NEAR = 0.1  # of log sigma: how well a few tokens tell it
_FARTHEST = 4.0  # factor between two sigmas that are tried: far away the effect says little about here


def change(here: NDArray[np.float32], there: Sequence[NDArray[np.float32]]) -> float:
    """Return how much vectors change log-probabilities, root mean square over vectors and tokens, in nats.

    Args:
        here: float32 [tokens], of tokens that were drawn with the vector at the centre.
        there: of each vector around it, of the same tokens.

    Returns:
        NaN where there are no tokens, or their log-probabilities are not finite; infinity where a vector's
        are not: it is too large for the model.
    """
    if not here.size or not np.isfinite(here).all():
        return math.nan
    found = np.sqrt(np.mean([(each.astype(np.float64) - here) ** 2 for each in there]))
    return float(found) if np.isfinite(found) else math.inf


def sigma_of(effect: float, first: float, measure: Callable[[float], float]) -> float:
    """Return the sigma whose perturbations have an effect.

    It is approached from sigmas near it and not extrapolated from a tiny one: quantized activations change
    log-probabilities by up to some tenths of a nat whatever sigma is.

    Args:
        effect: in nats.
        first: the sigma to try first.
        measure: gives the effect of a sigma; NaN where it cannot be told.

    Returns:
        The sigma; `first` where its effect cannot be told.
    """
    sigma = first
    for _ in range(_ROUNDS):
        found = measure(sigma)
        if math.isnan(found):
            return first
        factor = min(max(effect / max(found, 1e-12), 1 / _FARTHEST), _FARTHEST)
        sigma *= factor
        if abs(math.log(factor)) <= _NEAR:
            break
    return sigma


def spread_of(basis: Basis) -> float:
    """How much a vector of entries N(0, 1) changes the modules, for `TuneSettings.reach`.

    Where the basis has a prior, the entries are those of z (`Basis.whitening`).

    Returns:
        The root mean square, over modules and eight draws, of |B R A| / |B A| (Frobenius).
    """
    rng = np.random.default_rng(0)
    draws = [
        basis.R(basis.whitening.values(rng.standard_normal(basis.size))).astype(np.float64) for _ in range(8)
    ]
    shares = []
    for position, factors in enumerate(zip(basis.a, basis.b, strict=True)):
        a, b = (np.asarray(factor, np.float64) for factor in factors)
        left, right = np.swapaxes(b, -1, -2) @ b, a @ np.swapaxes(a, -1, -2)  # r x r
        whole = float(np.einsum("...ij,...ji->...", left, right).sum())
        for draw in draws:
            r = draw[position]
            shares.append(
                float(np.einsum("...ij,...ji->...", r.T @ left @ r, right).sum()) / max(whole, 1e-300)
            )
    return math.sqrt(float(np.mean(shares)))


def anchor_samples() -> list[Sample]:
    """Return the few general prompts that learning is anchored on; drift is measured on others."""
    return list(load_general(split="train")[:ANCHOR_PROMPTS])


class Anchor:
    """A few answers of the base to general prompts, and how far vectors are from it on them.

    Args:
        batch: draws the answers, once, and scores them.
        samples: the prompts.
        seed: of the answers.
    """

    def __init__(self, batch: Batch, samples: Sequence[Sample], seed: Sequence[int]) -> None:
        drawn = batch.draw(None, samples, max_tokens=ANCHOR_TOKENS, seed=seed)
        kept = [(sample, tokens) for sample, tokens in zip(samples, drawn, strict=True) if len(tokens)]
        self._batch = batch
        self._samples, self._answers = [sample for sample, _ in kept], [tokens for _, tokens in kept]
        self._base = batch.score_each([None], self._samples, self._answers)[0] if kept else np.empty(0)

    def distances(self, vectors: Sequence[MicroVector]) -> NDArray[np.float64]:
        """Return KL(base || vector) of each, in nats a token: float64 [vectors].

        It is 0 for all where the base had nothing to say, and NaN for a vector that is too large for the
        model.
        """
        if not self._answers:
            return np.zeros(len(vectors))
        scores = self._batch.score_each(vectors, self._samples, self._answers)
        return np.array([distance(self._base, there) for there in scores])


def distance(base: NDArray[np.floating], there: NDArray[np.floating]) -> float:
    """Return the mean of r - 1 - log r with r = p / p_base, over tokens that the base drew.

    As the mean of -log r it estimates KL(base || p), since r - 1 has the mean 0 (Schulman, "Approximating KL
    divergence", 2020, k3 with the base as the sampler). It is never below 0, and 0 only where nothing
    changed. So a search cannot gain by making these few answers likelier than the base does.
    """
    ratio = there.astype(np.float64) - base
    return float((np.expm1(np.minimum(ratio, _MOST)) - ratio).mean())
