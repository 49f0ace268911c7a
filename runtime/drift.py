"""The drift of a personalized model: how far it is from its base on prompts that nobody trained on.

Two figures say it. The divergence KL(base || personalized) is estimated on answers that the base draws: the
mean, over their tokens, of log p_base - log p_personalized, which is what forward passes give. And greedy
answers of both are judged by rule: whether they repeat themselves, and whether they are right where a rule
can tell. Knows no engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainError
from ..tasks import Completion, Prompt, Sample
from ..tasks.general import checkable, is_right, load_general, repeats_itself
from ..vector import MicroVector
from .batch import Batch
from .evaluation import ratio
from .model import PersonalizedModel

DRAWN_TOKENS = 32
"""Tokens of an answer that the divergence is estimated on."""
JUDGED_TOKENS = 64
"""Tokens of an answer that is judged: enough to begin to repeat itself."""


@dataclass(frozen=True)
class Faults:
    """The greedy answers that have a fault.

    Attributes:
        judged: answers that were judged.
        base: answers of the base that have it.
        vector: answers with the vector that have it.
        new: prompts on which the vector's answer has it and the base's has not.
    """

    judged: int
    base: int
    vector: int
    new: int

    @property
    def share(self) -> float:
        """`new` over the answers of the base without the fault; NaN where there are none."""
        sound = self.judged - self.base
        return self.new / sound if sound else math.nan


@dataclass(frozen=True, repr=False)
class Drift:
    """The distance of a personalized model from its base.

    Attributes:
        kl: KL(base || personalized) in nats a token, estimated on answers that the base drew at temperature
            1. An estimate of something near 0 may be below it.
        standard_error: of `kl`, between prompts.
        prompts: prompts that were asked.
        tokens: tokens of the base's answers.
        repeating: answers that repeat themselves (`tasks.general.repeats_itself`).
        wrong: answers that are not right, of the prompts where a rule can tell (`tasks.general.is_right`).
    """

    kl: float
    standard_error: float
    prompts: int
    tokens: int
    repeating: Faults
    wrong: Faults

    def record(self) -> dict[str, Any]:
        """Return the figures as JSON takes them; None for a share of nothing, or an error of one prompt."""
        figures = asdict(self)
        for name, faults in (("repeating", self.repeating), ("wrong", self.wrong)):
            figures[name]["share"] = None if math.isnan(faults.share) else faults.share
        if math.isnan(self.standard_error):
            figures["standard_error"] = None
        return figures

    def __repr__(self) -> str:
        return (
            f"Drift({self.kl:.4f} +- {self.standard_error:.4f} nats a token, {self.prompts} prompts, "
            f"{self.repeating.new} of {self.repeating.judged - self.repeating.base} begin to repeat "
            f"themselves, {self.wrong.new} of {self.wrong.judged - self.wrong.base} become wrong)"
        )


def measure_drift(
    llm: PersonalizedModel,
    vector: MicroVector | None,
    prompts: Sequence[Prompt | Sample] | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    sequences: int = 32,
    n_threads: int | None = None,
) -> Drift:
    """Measure how far a vector moves the model from its base on general prompts, by forward passes alone.

    Args:
        llm: a loaded model, of either engine. Neither its vector nor its context is touched.
        vector: to measure; None, for the base itself, has a drift of 0.
        prompts: texts, lists of chat messages, or samples. A sample with an `answer`, or with `answers` in
            its data, is checked for being right. None: those that are shipped (`tasks.general`).
        count: ask the first so many only.
        seed: of the answers that the base draws.
        sequences: that run at the same time.
        n_threads: cores to use; by default all that the engine would take.

    Raises:
        TrainError: there are no prompts, or one has no room in the model's context; the vector is too large
            for the model, whose logits are not finite.
        VectorError: the vector does not fit the basis.
    """
    found = measure_drifts(
        llm, [vector], prompts, count=count, seed=seed, sequences=sequences, n_threads=n_threads
    )
    return found[0]


def measure_drifts(
    llm: PersonalizedModel,
    vectors: Sequence[MicroVector | None],
    prompts: Sequence[Prompt | Sample] | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    sequences: int = 32,
    n_threads: int | None = None,
) -> list[Drift]:
    """Measure several vectors on the same answers of the base.

    Args:
        llm: as for `measure_drift`, as are prompts, count, seed, sequences and n_threads.
        vectors: to measure, each as for `measure_drift`.

    Returns:
        The drift of each vector, in order.

    Raises:
        TrainError: as for `measure_drift`.
        VectorError: a vector does not fit the basis.
    """
    given = load_general() if prompts is None else prompts
    samples = [Sample.of(prompt) for prompt in given[:count]]
    if not samples:
        raise TrainError("drift is measured on prompts, and there are none: give at least one")
    room = max(DRAWN_TOKENS, JUDGED_TOKENS)
    with llm.batch(samples, room, sequences=sequences, n_threads=n_threads) as population:
        lengths, scores = _scores(population, vectors, samples, seed)
        judged = [None, *vectors]
        answers = population.answer_each(
            judged, samples, max_tokens=JUDGED_TOKENS, temperature=0.0, seed=seed
        )
    base, here = answers[0], scores[0]
    for number, (there, own) in enumerate(zip(scores[1:], answers[1:], strict=True)):
        if not np.isfinite(there).all() or any(answer.exploded for answer in own):
            raise TrainError(
                f"vector {number} is too large for the model: its logits are not finite on prompts that "
                "nobody trained on, so that there is no drift to measure"
            )
    return [
        Drift(
            *divergence(here, there, lengths),
            prompts=len(samples),
            tokens=len(here),
            repeating=_repeating(base, own),
            wrong=_wrong(base, own, samples),
        )
        for there, own in zip(scores[1:], answers[1:], strict=True)
    ]


def drift_beside(
    llm: PersonalizedModel,
    vector: MicroVector,
    *,
    count: int,
    complain: Callable[[str], None],
    sequences: int = 32,
    n_threads: int | None = None,
) -> Drift | None:
    """Measure the drift of a vector that was just found; no vector is lost where that is not possible.

    Args:
        llm, vector, sequences, n_threads: as for `measure_drift`.
        count: general prompts to ask; with 0 nothing is measured.
        complain: called with why nothing could be measured.

    Raises:
        VectorError: the vector does not fit the basis.
    """
    if not count:
        return None
    try:
        return measure_drift(llm, vector, count=count, sequences=sequences, n_threads=n_threads)
    except TrainError as error:
        complain(str(error))
        return None


def divergence(
    base: NDArray[np.float32], personalized: NDArray[np.float32], lengths: Sequence[int]
) -> tuple[float, float]:
    """Return the mean of log p_base - log p_personalized, and its standard error between answers.

    The error is that of a ratio of sums over answers (`ratio`).

    Args:
        base: log-probabilities of the tokens that the base drew, float32 [tokens].
        personalized: of the same tokens with the vector.
        lengths: tokens of each answer.

    Returns:
        Both in nats a token; the error is NaN for a single answer.
    """
    counts = np.array(lengths, np.int64)
    gaps = base.astype(np.float64) - personalized
    sums = np.array([part.sum() for part in np.split(gaps, np.cumsum(counts)[:-1])])
    return ratio(sums, counts)


def _scores(
    population: Batch, vectors: Sequence[MicroVector | None], samples: Sequence[Sample], seed: int
) -> tuple[list[int], list[NDArray[np.float32]]]:
    """Return the lengths of answers that the base drew, and their log-probabilities by base and vectors."""
    drawn = population.draw(None, samples, max_tokens=DRAWN_TOKENS, seed=seed)
    kept = [i for i, tokens in enumerate(drawn) if len(tokens)]
    if not kept:
        raise TrainError(
            f"the base says nothing to any of {len(samples)} prompts, so there is nothing to measure drift "
            "on: give prompts that it answers"
        )
    answers = [drawn[i] for i in kept]
    scores = population.score_each([None, *vectors], [samples[i] for i in kept], answers)
    return [len(tokens) for tokens in answers], scores


def _repeating(base: Sequence[Completion], own: Sequence[Completion]) -> Faults:
    before, after = ([repeats_itself(answer.text) for answer in side] for side in (base, own))
    return _faults(before, after)


def _wrong(base: Sequence[Completion], own: Sequence[Completion], samples: Sequence[Sample]) -> Faults:
    known = [(i, answers) for i, sample in enumerate(samples) if (answers := checkable(sample))]
    before, after = ([not is_right(side[i].text, answers) for i, answers in known] for side in (base, own))
    return _faults(before, after)


def _faults(base: Sequence[bool], vector: Sequence[bool]) -> Faults:
    new = sum(b and not a for a, b in zip(base, vector, strict=True))
    return Faults(len(base), sum(base), sum(vector), new)
