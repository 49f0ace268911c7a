"""What the tests of tuning learn: prompts with a reward that any tiny model can raise, and a model whose best
vector is known, without an engine, so that what is learned depends on no kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import support

from tinylora_edge import MicroVector
from tinylora_edge.runtime import TuneSettings
from tinylora_edge.runtime.batch import Generation
from tinylora_edge.tasks import Completion, Sample

FAST = TuneSettings(prompts=4, held_back=8, check_every=3, population=6)
QUICK: dict[str, Any] = {"max_tokens": 5, "settings": FAST, "n_threads": 1}
PROMPTS = [f"prompt {word}" for word in "abcdefghijklmnopqrstuvwxyz"]


def favoured(completion: Completion, sample: Sample) -> float:
    return sum(ord(c) % 7 < 3 for c in completion.text) / max(len(completion.text), 1)


NOISE = 1e-3  # of log-probabilities and of what decides an answer: more than other kernels make


class Planted:
    def __init__(self, seed: int) -> None:
        self.bases = support.bases_with(support.random_basis(blocks=4, groups=5))
        self.vector: MicroVector | None = None
        self.evaluated = 0
        self._rng = np.random.default_rng((seed, 1))
        direction = np.random.default_rng(seed).standard_normal(5)
        self.target = (1.5 * direction / np.linalg.norm(direction)).astype(np.float32)

    def swap(self, vector: MicroVector) -> MicroVector:
        self.vector = vector
        return vector

    @contextmanager
    def batch(self, samples: Sequence[Sample], max_tokens: int, **options: Any) -> Iterator[Planted]:
        yield self

    def answer_each(
        self, vectors: Sequence[MicroVector | None], samples: Sequence[Sample], **options: Any
    ) -> list[list[Completion]]:
        self.evaluated += 10 * len(vectors) * len(samples)
        return [[Completion(f"{self._nearness(v):.6f}", True, 5) for _ in samples] for v in vectors]

    def encode(self, samples: Sequence[Sample]) -> list[list[int]]:
        return [[0]] * len(samples)

    def generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[Generation]:
        return [Generation(i, np.zeros(1, "i4"), np.zeros(1, "f4"), True) for i, _ in enumerate(prompts)]

    def score_each(
        self, vectors: Sequence[MicroVector | None], prompts: Sequence[Sequence[int]], answers: Any
    ) -> list[list[list[np.ndarray]]]:
        """A log-probability is the nearness, so an effect of .5 nats is a step of .5 towards the target."""
        return [[[np.array([self._nearness(v)], np.float32)] for _ in prompts] for v in vectors]

    def _nearness(self, vector: MicroVector | None) -> float:
        values = np.zeros_like(self.target) if vector is None else vector.values
        return -float(np.linalg.norm(values - self.target)) + NOISE * float(self._rng.standard_normal())

    @staticmethod
    def reward(completion: Completion, sample: Sample) -> float:
        return float(completion.text)
