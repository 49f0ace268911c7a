"""Scores on held-out prompts in the deployed engine, paired, with standard errors and a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import VectorError
from ..runtime.batch import Batch
from ..runtime.model import PersonalizedModel
from ..tasks import Preamble, Sample, Task, rewards
from ..tasks.rewards import json_value, label
from ..vector import MicroVector


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The rewards of a vector on a list of prompts.

    Attributes:
        scores: float64 [n], in the order of the prompts. Of a task whose reward is `text`: minus the nats a
            token of the given answer, with its end.
        answers: the texts; empty ones where given answers are measured.
        partial: the mean with credit for coming near (`Task.shaped`); None where the task has none.
    """

    scores: NDArray[np.float64]
    answers: list[str]
    partial: float | None = None

    def __repr__(self) -> str:
        return f"Evaluation(mean {self.mean:.4f} +- {self.standard_error:.4f}, n = {self.n})"

    def first(self, n: int) -> Evaluation:
        """Return what was found for the first n prompts."""
        return replace(self, scores=self.scores[:n], answers=self.answers[:n], partial=None)

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.scores)

    @property
    def mean(self) -> float:
        """Mean reward."""
        return float(self.scores.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean: s / sqrt(n) with the sample's standard deviation; NaN for a single prompt."""
        return _standard_error(self.scores)


@dataclass(frozen=True)
class Comparison:
    """The paired difference of two evaluations on the same prompts.

    Attributes:
        difference: mean of second minus first.
        standard_error: of the difference, from the paired differences.
        gained, lost: prompts on which the second scored higher, lower.
        p: two-sided, that gains and losses are equally likely: McNemar's exact test for 0/1 rewards,
            which for other rewards is the sign test.
    """

    difference: float
    standard_error: float
    gained: int
    lost: int
    p: float


Answered = Callable[[int], None]
"""Called, from any thread, with how many more prompts are answered."""

_TOGETHER = 32
"""Given answers that are measured between two reports of progress."""

_COUNTED = 32
"""Longest answers, in bytes, whose tokens are counted to find the longest of all."""


def fitted(task: Task, llm: PersonalizedModel) -> Task:
    """Return a task whose answers have at most half as many tokens again as the longest of its given ones.

    The limit of a file's task is its longest answer in bytes, as no model is there to count tokens. Where the
    reward compares with whole answers, what is longer is wrong; all other tasks keep their limit.
    """
    known = [sample for sample in (*task.train, *task.held_out) if sample.answer is not None]
    if not known or task.reward not in (label, json_value):
        return task
    known.sort(key=lambda sample: len(str(sample.answer).encode()))
    longest = max(len(llm.encode_answer(sample)) for sample in known[-_COUNTED:])
    return replace(task, max_tokens=min(task.max_tokens, longest + longest // 2))


def evaluate(
    batch: Batch,
    task: Task,
    vector: MicroVector | None,
    *,
    samples: Sequence[Sample] | None = None,
    preamble: Preamble | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    answered: Answered = lambda count: None,
) -> Evaluation:
    """Score the answers of a vector to a task's held-out prompts.

    They keep to the task's schema. Where its reward is `text`, nothing is drawn, and the given answers are
    measured, up to the token limit.

    Args:
        batch: over the deployed model.
        task: prompts, reward, schema and token limit.
        vector: None for the base alone.
        samples: other prompts than `task.held_out`.
        preamble: what stands before every prompt. The reward sees the prompt without it.
        temperature: 0 for greedy answers.
        seed: of sampling; the same for every vector pairs the random numbers too.
        answered: told of progress: how many more prompts are answered.

    Raises:
        VectorError: the vector does not fit, or a prompt does not fit the batch's context.
        TrainError: the reward fails, or a preamble cannot stand before a prompt.
        RequestError: the schema becomes no grammar.
        MissingExtraError: llguidance is not installed, which schemas need.
    """
    chosen = list(task.held_out if samples is None else samples)
    prompts = chosen if preamble is None else [preamble.before(sample) for sample in chosen]
    if rewards.is_text(task.reward):
        return _likelihoods(batch, task, vector, prompts, answered)
    answers = batch.answer(
        prompts,
        vector=vector,
        max_tokens=task.max_tokens,
        temperature=temperature,
        seed=seed,
        schema=task.schema,
        answered=answered,
    )
    partial = None
    if task.shaped is not None:
        partial = float(np.mean(replace(task, reward=task.shaped).scores(answers, chosen)))
    return Evaluation(
        np.array(task.scores(answers, chosen), np.float64),
        [answer.text for answer in answers],
        partial,
    )


def _likelihoods(
    batch: Batch, task: Task, vector: MicroVector | None, prompts: Sequence[Sample], answered: Answered
) -> Evaluation:
    """Measure how likely the given answers are."""
    found: list[float] = []
    for start in range(0, len(prompts), _TOGETHER):
        samples = prompts[start : start + _TOGETHER]
        answers = [[batch.llm.encode_answer(sample)[: task.max_tokens]] for sample in samples]
        for (each,) in batch.score(batch.encode(samples), answers, vector=vector):
            found.append(float(each.mean()))
            answered(1)
    return Evaluation(np.array(found), [""] * len(found))


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Compare two evaluations on the same prompts.

    Raises:
        VectorError: they have different numbers of prompts.
    """
    if first.n != second.n:
        raise VectorError(f"evaluations on {first.n} and {second.n} prompts cannot be paired")
    gaps = second.scores - first.scores
    gained, lost = int((gaps > 0).sum()), int((gaps < 0).sum())
    return Comparison(float(gaps.mean()), _standard_error(gaps), gained, lost, _mcnemar(gained, lost))


def _standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean; NaN for a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p: the discordant pairs are binomial with 1/2 (McNemar, 1947)."""
    pairs = gained + lost
    tail = sum(math.comb(pairs, k) for k in range(min(gained, lost) + 1))
    p: float = 2 * tail / 2**pairs
    return min(1.0, p)


def held_out(base: Evaluation, vector: Evaluation) -> dict[str, Any]:
    """Return the figures of base and vector on the same prompts, as the record of a run has them."""
    return {
        "n": base.n,
        "base": base.mean,
        "base_standard_error": base.standard_error,
        "vector": vector.mean,
        "vector_standard_error": vector.standard_error,
        **asdict(compare(base, vector)),
    }
