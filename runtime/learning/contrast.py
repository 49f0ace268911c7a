"""A prompted model and a bare one, compared on the prompted one's answers: what a vector holds of a prompt.

At each place of an answer the two are compared as distributions over the tokens that the prompted model
finds likeliest there, everything else being one outcome more. Divergences of these are exact but for what
happens inside that one outcome, and never above the divergence over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainError
from ...tasks import Sample
from ...tasks.behaviours import Behaviour
from ...vector import MicroVector
from ..batch import Batch

Array = NDArray[np.float64]
Tokens = NDArray[np.int32]

OUTCOMES = 128
"""Tokens that are told apart at each place."""

NOISE = 0.01
"""Nats a token: a prompt that changes less than this changes nothing. Quantized activations alone move the
answers of a small model by a fifth of it."""

SHOWN_TOKENS = 40
"""Longest answer that is shown."""

_SHOWN = 3  # questions whose answers are shown
_LEAST = 1e-6  # probability of all the rest together: rounding leaves less, or less than nothing


@dataclass(frozen=True)
class Lesson:
    """The questions of one behaviour as token ids, with the answers that the prompted model gave.

    Attributes:
        name: of the behaviour.
        told: int32 [n], a prompt with the teacher, for each question.
        bare: int32 [n], the same without.
        answers: int32 [n], sampled from the prompted model, with the token that ended it if there was one.
    """

    name: str
    told: list[Tokens]
    bare: list[Tokens]
    answers: list[Tokens]

    @property
    def tokens(self) -> int:
        """Number of tokens that are learned from."""
        return sum(map(len, self.answers))


@dataclass(frozen=True)
class Shown:
    """The greedy answers to a held-out question: without the prompt, with it, with the vector instead."""

    question: str
    bare: str
    prompted: str
    personalized: str


@dataclass(frozen=True, repr=False)
class Replacement:
    """What a vector holds of a prompt, on held-out questions.

    Attributes:
        before, after: float64 [questions], KL from the prompted model to the bare one without the vector and
            with it, in nats, summed over the prompted model's answer.
        lengths: int64 [questions], tokens of the answers.
        told, bare: tokens of a question with the prompt and without, mean.
        shown: answers side by side.
    """

    before: Array
    after: Array
    lengths: NDArray[np.int64]
    told: float
    bare: float
    shown: tuple[Shown, ...]

    @property
    def share(self) -> float:
        """Share of the divergence that the vector closes; below 0 it does harm."""
        return float(1 - self.after.sum() / self.before.sum())

    @property
    def standard_error(self) -> float:
        """Of the share, over questions, as of a ratio of two sums; NaN for a single question."""
        return ratio(self.after, self.before)[1]

    @property
    def nats(self) -> float:
        """Divergence without the vector, in nats a token; `nats_left` is that with it."""
        return float(self.before.sum() / self.lengths.sum())

    @property
    def nats_left(self) -> float:
        """See `nats`."""
        return float(self.after.sum() / self.lengths.sum())

    def __repr__(self) -> str:
        return (
            f"Replacement({self.share:.3f} +- {self.standard_error:.3f} of {self.nats:.3f} nats a token "
            f"closed, {self.bare:.0f} tokens instead of {self.told:.0f})"
        )


@dataclass(frozen=True)
class Distilled:
    """A prompt as a vector, and how much of it the vector holds.

    Attributes:
        vector: fp32; zeros where nothing came nearer to the prompted model than the base.
        replacement: measured in the deployed engine on held-out questions.
        seconds: of wall time.
        steps: of the search, on a device.
        tokens: that the model evaluated there, prompts and answers, measuring included.
        improved: whether the vector is nearer than the base, on the questions that decided.
    """

    vector: MicroVector
    replacement: Replacement
    seconds: float
    steps: int = 0
    tokens: int = 0
    improved: bool = True


class Contrast:
    """The prompted model's distributions on its own answers, with which the bare model's are compared.

    Attributes:
        lesson: questions and answers.
        teacher: float64 [n, k + 1] for each question, log-probabilities of the outcomes under the prompted
            model without any vector, n being the length of the answer.
    """

    def __init__(self, batch: Batch, lesson: Lesson) -> None:
        self.lesson, self._batch = lesson, batch
        found = batch.likeliest(_lists(lesson.told), [_lists([a]) for a in lesson.answers], OUTCOMES)
        self._outcomes = [tokens for ((tokens, _),) in found]
        self.teacher = [_with_rest(logprobs) for ((_, logprobs),) in found]

    def divergences(self, vector: MicroVector | None, questions: Sequence[int] | None = None) -> Array:
        """Return the KL from the prompted model to the bare one with a vector, on some questions or all.

        Returns:
            float64 [questions], in nats, summed over the tokens of the answer; not finite where the vector
            is too large for the model.
        """
        chosen = range(len(self.teacher)) if questions is None else questions
        found = self._batch.score(
            _lists([self.lesson.bare[q] for q in chosen]),
            [_lists([self.lesson.answers[q]]) for q in chosen],
            vector=vector,
            among=[[self._outcomes[q]] for q in chosen],
        )
        students = [_with_rest(logprobs) for (logprobs,) in found]
        pairs = zip((self.teacher[q] for q in chosen), students, strict=True)
        return np.array([divergence(*pair).sum() for pair in pairs])


def divergence(teacher: Array, student: Array) -> Array:
    """Return KL(teacher || student) of each row: log-probabilities [n, k] -> float64 [n], in nats."""
    result: Array = (np.exp(teacher) * (teacher - student)).sum(axis=-1)
    return result


def views(behaviour: Behaviour, questions: Sequence[str]) -> tuple[list[Sample], list[Sample]]:
    """Return what a model sees of each question, with the prompt and without."""
    told = [Sample(tuple(behaviour.messages(question))) for question in questions]
    return told, [Sample(tuple(behaviour.bare(question))) for question in questions]


def divergence_before(contrast: Contrast) -> Array:
    """Return the divergences without any vector, of each question, in nats.

    Raises:
        TrainError: they are noise: the prompt changes nothing; or they are no numbers.
    """
    before = contrast.divergences(None)
    each = before.sum() / contrast.lesson.tokens
    if not np.isfinite(each):
        raise TrainError("the base's logits are not finite on these questions: there is nothing to compare")
    if each < NOISE:
        raise TrainError(
            f"the prompt changes nothing: the answers that it gives are {each:.4f} nats a token from the "
            f"bare model's, and below {NOISE} there is only noise. Write a prompt that the model follows"
        )
    return before


def measure(
    batch: Batch,
    behaviour: Behaviour,
    questions: Sequence[str],
    contrast: Contrast,
    before: Array,
    vector: MicroVector,
) -> Replacement:
    """Measure what a vector holds of a prompt, on the held-out questions that the contrast's lesson has.

    Raises:
        TrainError: the vector is too large for the model, whose logits are not finite.
    """
    lesson, after = contrast.lesson, contrast.divergences(vector)
    if not np.isfinite(after).all():
        raise TrainError(
            "the vector is too large for the model: its logits are not finite on held-out questions, so that "
            "there is nothing to measure"
        )
    told, bare = views(behaviour, questions[:_SHOWN])
    rows = []
    for samples, active in ((bare, None), (told, None), (bare, vector)):
        answers = batch.answer(samples, vector=active, max_tokens=SHOWN_TOKENS)
        rows.append([answer.text for answer in answers])
    return Replacement(
        before,
        after,
        np.array([len(answer) for answer in lesson.answers]),
        float(np.mean([len(each) for each in lesson.told])),
        float(np.mean([len(each) for each in lesson.bare])),
        tuple(Shown(*each) for each in zip(questions, *rows, strict=False)),
    )


def _lists(rows: Sequence[Tokens]) -> list[list[int]]:
    return [row.tolist() for row in rows]


def _with_rest(logprobs: NDArray[np.float32]) -> Array:
    """Append the log-probability of everything else, and let a row sum to 1."""
    exact = logprobs.astype(np.float64)
    rest = np.maximum(1 - np.exp(exact).sum(axis=1, keepdims=True), _LEAST)
    whole = np.concatenate([exact, np.log(rest)], axis=1)
    result: Array = whole - np.log(np.exp(whole).sum(axis=1, keepdims=True))
    return result


def ratio(sums: NDArray[np.float64], of: NDArray[Any]) -> tuple[float, float]:
    """Return the ratio of two sums, and its standard error as one over independent pairs of terms.

    What is summed within a term need not be independent, such as the tokens of an answer (Cochran, Sampling
    Techniques, 1977, section 2.11).

    Args:
        sums: float64 [n].
        of: [n], what they are divided by.

    Returns:
        The error is NaN for a single term.
    """
    found, n = float(sums.sum() / of.sum()), len(sums)
    if n < 2:
        return found, math.nan
    squares = float(((sums - found * of) ** 2).sum())
    return found, math.sqrt(n / (n - 1) * squares) / float(of.sum())
