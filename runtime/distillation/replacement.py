"""The replacement of a prompt by a vector: how much of the prompt it holds, and what it saves.

Everything is measured in the deployed engine, on questions that the vector was not fitted to.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainError
from ...tasks import Sample
from ...vector import MicroVector
from ..batch import Batch
from ..evaluation import ratio
from ..model import PersonalizedModel
from .contrast import Contrast

NOISE = 0.01
"""Nats a token: a prompt that changes less than this changes nothing. Quantized activations alone move the
answers of a small model by a fifth of it."""

SHOWN = 3
"""Questions whose answers are shown."""

SHOWN_TOKENS = 40
"""Longest answer that is shown."""

TIMED = 4
"""Questions whose first token is timed, with the prompt and without in turn."""

_PATIENCE = 10.0  # seconds: on a machine so busy that timing takes longer, fewer questions are timed


class Prompted(Protocol):
    """A prompt: what a model sees with it and without. `Behaviour` is one."""

    def messages(self, question: str) -> list[dict[str, Any]]:
        """Return what the model sees with the prompt."""

    def bare(self, question: str) -> list[dict[str, Any]]:
        """Return what it sees without."""


@dataclass(frozen=True)
class Shown:
    """The answers to one held-out question, greedy.

    Attributes:
        question: that was asked.
        bare, prompted, personalized: the answers without the prompt, with it, and with the vector instead.
    """

    question: str
    bare: str
    prompted: str
    personalized: str


@dataclass(frozen=True, repr=False)
class Replacement:
    """What a vector holds of a prompt, on held-out questions.

    Attributes:
        before: float64 [questions], KL from the prompted model to the bare one on each question, in nats,
            summed over the prompted model's answer.
        after: the same with the vector.
        lengths: int64 [questions], tokens of the answers.
        told: tokens of a prompt with what it says, mean over the questions.
        bare: the same without.
        told_s, bare_s: seconds to the first token, with the prompt and with the vector instead, medians on
            this machine.
        shown: answers side by side.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    lengths: NDArray[np.int64]
    told: float
    bare: float
    told_s: float
    bare_s: float
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
        """Divergence without the vector, in nats a token."""
        return float(self.before.sum() / self.lengths.sum())

    @property
    def nats_left(self) -> float:
        """Divergence with the vector, in nats a token."""
        return float(self.after.sum() / self.lengths.sum())

    def __repr__(self) -> str:
        return (
            f"Replacement({self.share:.3f} +- {self.standard_error:.3f} of {self.nats:.3f} nats a token "
            f"closed, {self.bare:.0f} tokens instead of {self.told:.0f})"
        )


def samples_of(prompted: Prompted, questions: Sequence[str]) -> tuple[list[Sample], list[Sample]]:
    """Return what a model sees of each question, with the prompt and without."""
    told = [Sample(tuple(prompted.messages(question))) for question in questions]
    return told, [Sample(tuple(prompted.bare(question))) for question in questions]


def divergence_before(contrast: Contrast) -> NDArray[np.float64]:
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
    llm: PersonalizedModel,
    batch: Batch,
    prompted: Prompted,
    questions: Sequence[str],
    contrast: Contrast,
    before: NDArray[np.float64],
    vector: MicroVector,
    *,
    n_threads: int | None = None,
) -> Replacement:
    """Measure what a vector holds of a prompt.

    Args:
        llm: the deployed model.
        batch: of it, with room for every prompt and `SHOWN_TOKENS` more.
        prompted: the prompt.
        questions: held-out ones.
        contrast: of the lesson that has these questions, in this order.
        before: divergences of the contrast without a vector.
        vector: to measure. The batch keeps it.
        n_threads: of the timing; by default all cores that this process may use.

    Raises:
        TrainError: the vector is too large for the model, whose logits are not finite.
    """
    lesson = contrast.lesson
    after = contrast.divergences(vector)
    if not np.isfinite(after).all():
        raise TrainError(
            "the vector is too large for the model: its logits are not finite on held-out questions, so that "
            "there is nothing to measure"
        )
    shown = _side_by_side(batch, prompted, list(questions)[:SHOWN], vector)
    told_s, bare_s = _first_tokens(llm, prompted, list(questions)[:TIMED], vector, n_threads)
    return Replacement(
        before,
        after,
        np.array([len(answer) for answer in lesson.answers]),
        float(np.mean([len(each) for each in lesson.told])),
        float(np.mean([len(each) for each in lesson.bare])),
        told_s,
        bare_s,
        shown,
    )


def _side_by_side(
    batch: Batch, prompted: Prompted, questions: Sequence[str], vector: MicroVector
) -> tuple[Shown, ...]:
    told, bare = samples_of(prompted, questions)
    rows = []
    for samples, active in ((bare, None), (told, None), (bare, vector)):
        batch.swap(active)
        answers = batch.answer(samples, max_tokens=SHOWN_TOKENS, temperature=0.0, seed=0)
        rows.append([answer.text for answer in answers])
    return tuple(Shown(*each) for each in zip(questions, *rows, strict=True))


def _first_tokens(
    llm: PersonalizedModel,
    prompted: Prompted,
    questions: Sequence[str],
    vector: MicroVector,
    n_threads: int | None,
) -> tuple[float, float]:
    """Return the median seconds to the first token with the prompt, and with the vector instead.

    Nothing of a prompt is in the cache. The two take turns: whatever else the machine does meets both.
    """
    taken: list[tuple[float, float]] = []
    told, bare = samples_of(prompted, questions)
    with llm.batch([*told, *bare], 1, sequences=1, n_threads=n_threads) as alone:
        start = time.perf_counter()
        alone.generate([llm._encode(bare[0])], max_tokens=1)  # the first use of a context takes longer
        for pair in zip(told, bare, strict=True):
            times = []
            for prompt, active in zip(pair, (None, vector), strict=True):
                alone.swap(active)
                tokens = llm._encode(prompt)
                began = time.perf_counter()
                alone.generate([tokens], max_tokens=1)
                times.append(time.perf_counter() - began)
            taken.append((times[0], times[1]))
            if time.perf_counter() - start > _PATIENCE:
                break
    with_prompt, with_vector = np.median(np.array(taken), axis=0)
    return float(with_prompt), float(with_vector)
