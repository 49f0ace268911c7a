"""The anchor of tuning: what a candidate pays for moving the model away from its base."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...tasks import Sample
from ...tasks.general import load_general
from ...vector import MicroVector
from ..batch import Batch

ANCHOR_PROMPTS, ANCHOR_TOKENS = 8, 12

_MOST = 10.0  # nats: the ratio of one token must not overflow


def anchor_samples() -> list[Sample]:
    """Return the few general prompts that tuning is anchored on; drift is measured on others."""
    return list(load_general(split="train")[:ANCHOR_PROMPTS])


class Anchor:
    """A few answers of the base to general prompts, and how far vectors are from it on them.

    Args:
        population: draws the answers, once, and scores them.
        samples: the prompts.
        seed: of the answers.
    """

    def __init__(self, population: Batch, samples: Sequence[Sample], seed: Sequence[int]) -> None:
        drawn = population.draw(None, samples, max_tokens=ANCHOR_TOKENS, seed=seed)
        kept = [(sample, tokens) for sample, tokens in zip(samples, drawn, strict=True) if len(tokens)]
        self._population = population
        self._samples, self._answers = [sample for sample, _ in kept], [tokens for _, tokens in kept]
        self._base = population.score_each([None], self._samples, self._answers)[0] if kept else np.empty(0)

    def distances(self, vectors: Sequence[MicroVector]) -> NDArray[np.float64]:
        """Return KL(base || vector) of each, in nats a token: float64 [vectors].

        It is 0 for all where the base had nothing to say, and NaN for a vector that is too large for the
        model.
        """
        if not self._answers:
            return np.zeros(len(vectors))
        scores = self._population.score_each(vectors, self._samples, self._answers)
        return np.array([distance(self._base, there) for there in scores])


def distance(base: NDArray[np.floating], there: NDArray[np.floating]) -> float:
    """Return the mean of r - 1 - log r with r = p / p_base, over tokens that the base drew.

    As the mean of -log r it estimates KL(base || p), since r - 1 has the mean 0 (Schulman, "Approximating KL
    divergence", 2020, k3 with the base as the sampler). It is never below 0, and 0 only where nothing
    changed. So a search cannot gain by making these few answers likelier than the base does.
    """
    ratio = there.astype(np.float64) - base
    return float((np.expm1(np.minimum(ratio, _MOST)) - ratio).mean())
