"""The contrast of a prompted model and a bare one, on the prompted one's answers.

At each place of an answer the two are compared as distributions over the tokens that the prompted model
finds likeliest there, everything else being one outcome more. Divergences of these are exact but for what
happens inside that one outcome, and never above the divergence over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...vector import MicroVector
from ..batch import Batch
from .lesson import Lesson

Array = NDArray[np.float64]

OUTCOMES = 128
"""Tokens that are told apart at each place."""

_LEAST = 1e-6  # probability of all the rest together: rounding leaves less, or less than nothing


class Contrast:
    """The prompted model's distributions on its own answers, with which the bare model's are compared.

    Args:
        batch: of the deployed model; it keeps the vector that was compared last.
        lesson: questions and answers.

    Attributes:
        lesson: the same.
        teacher: float64 [n, k + 1] for each question, log-probabilities of the outcomes under the prompted
            model without any vector, n being the length of the answer.
    """

    def __init__(self, batch: Batch, lesson: Lesson) -> None:
        self.lesson, self._batch = lesson, batch
        batch.swap(None)
        found = batch.likeliest(lists(lesson.told), [lists([a]) for a in lesson.answers], OUTCOMES)
        self._outcomes = [tokens for ((tokens, _),) in found]
        self.teacher = [_with_rest(logprobs) for ((_, logprobs),) in found]

    def student(self, vector: MicroVector | None, questions: Sequence[int] | None = None) -> list[Array]:
        """Return the log-probabilities of the outcomes under the bare model with a vector.

        Args:
            vector: None for the base alone.
            questions: which of the lesson's; None for all.

        Returns:
            For each of the questions float64 [n, k + 1].

        Raises:
            VectorError: the vector does not fit the basis.
        """
        chosen = range(len(self.teacher)) if questions is None else questions
        self._batch.swap(vector)
        found = self._batch.score(
            lists([self.lesson.bare[q] for q in chosen]),
            [lists([self.lesson.answers[q]]) for q in chosen],
            among=[[self._outcomes[q]] for q in chosen],
        )
        return [_with_rest(logprobs) for (logprobs,) in found]

    def divergences(self, vector: MicroVector | None) -> Array:
        """Return the KL from the prompted model to the bare one with a vector, on each question.

        Returns:
            float64 [questions], in nats, summed over the tokens of the answer.
        """
        return np.array(
            [divergence(*pair).sum() for pair in zip(self.teacher, self.student(vector), strict=True)]
        )


def divergence(teacher: Array, student: Array) -> Array:
    """Return KL(teacher || student) of each row: log-probabilities [n, k] -> float64 [n], in nats."""
    result: Array = (np.exp(teacher) * (teacher - student)).sum(axis=-1)
    return result


def lists(rows: Sequence[NDArray[np.int32]]) -> list[list[int]]:
    """Return token ids as a batch takes them."""
    return [row.tolist() for row in rows]


def _with_rest(logprobs: NDArray[np.float32]) -> Array:
    """Append the log-probability of everything else, and let a row sum to 1."""
    exact = logprobs.astype(np.float64)
    rest = np.maximum(1 - np.exp(exact).sum(axis=1, keepdims=True), _LEAST)
    whole = np.concatenate([exact, np.log(rest)], axis=1)
    result: Array = whole - np.log(np.exp(whole).sum(axis=1, keepdims=True))
    return result
