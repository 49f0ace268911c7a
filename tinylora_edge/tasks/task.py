"""A task: prompts, a reward, and the check on everything that the reward returns."""

from __future__ import annotations

import math
import numbers
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from ..errors import TrainError
from .sample import Sample

_T = TypeVar("_T")
_SHOWN = 300  # characters of a prompt or an answer that an error quotes


@dataclass(frozen=True)
class Completion:
    """The answer of a model: decoded, special tokens stripped.

    It `ended` by itself (EOS) within the token limit, or was cut.
    """

    text: str
    ended: bool
    tokens: int


Reward: TypeAlias = Callable[[Completion, Sample], float]
"""Judges one completion. Higher is better; the built-in ones stay within 0 and 1."""


def name_of(reward: Reward) -> str:
    """Return the text of a built-in reward, or the name of a function."""
    return str(getattr(reward, "__name__", type(reward).__name__))


@dataclass(frozen=True)
class Task:
    """Prompts to train on, prompts never trained on, and the reward for all of them.

    Attributes:
        name: the built-in name or the path that it was loaded by.
        train: samples to learn from.
        held_out: samples to measure on; none of their prompts is in `train`.
        reward: call it through `score`, which checks what it returns.
        max_tokens: limit of a completion, in tokens.
        temperature: sampling temperature that suits the task in training.
        shaped: the same goal with credit for coming near, to tune by; what is measured is always `reward`.
        shifted: more samples to measure on, of another kind than those of `held_out`: rarer words, other
            phrasings of the request, longer inputs. None of their prompts is in `train` or `held_out`.
        preamble: what all its prompts begin with, as `Preamble.record` has it; None where that is nothing.
        schema: what answers are held to while they are drawn, in training and in use: a JSON schema, or a
            list of labels, one of which is the answer; None where they are free.
        notes: what its user should know of the data, a sentence each: duplicates that were dropped, say.
    """

    name: str
    train: Sequence[Sample]
    held_out: Sequence[Sample]
    reward: Reward
    max_tokens: int = 64
    temperature: float = 0.7
    shaped: Reward | None = None
    shifted: Sequence[Sample] = ()
    preamble: Mapping[str, Any] | None = None
    schema: Mapping[str, Any] | Sequence[str] | None = None
    notes: Sequence[str] = ()

    def score(self, completion: Completion, sample: Sample) -> float:
        """Return the reward of one completion, as a finite float.

        Raises: TrainError: the reward raised an exception, or returned no finite real number. A bool is none:
        it is more often a forgotten expression than a score.
        """
        try:
            value = self.reward(completion, sample.without_preamble or sample)
            real = isinstance(value, numbers.Real) and not isinstance(value, bool)
            score = float(value) if real else math.nan
        except Exception as error:
            raise TrainError(
                f"{self._where(completion, sample)}: the reward raised {type(error).__name__}: {error}"
            ) from error
        if math.isfinite(score):
            return score
        raise TrainError(
            f"{self._where(completion, sample)}: the reward returned {_short(repr(value))} "
            f"({type(value).__name__}), expected a finite real number such as 0.0 or 1.0"
        )

    def scores(self, completions: Sequence[Completion], samples: Sequence[Sample]) -> list[float]:
        """The rewards of completions, one a sample."""
        return [self.score(*each) for each in zip(completions, samples, strict=True)]

    def _where(self, completion: Completion, sample: Sample) -> str:
        splits = {"train": self.train, "held_out": self.held_out, "shifted": self.shifted}
        places = (
            f"{split} sample {index}"
            for split, samples in splits.items()
            for index, other in enumerate(samples)
            if other.prompt == sample.prompt
        )
        return (
            f"task {self.name}, {next(places, 'a sample of no split')} "
            f"(prompt {_short((sample.without_preamble or sample).text)!r}, "
            f"completion {_short(completion.text)!r})"
        )


def drawn(seed: str, items: Sequence[_T], count: int) -> list[_T]:
    """Return `count` of the items, each at most once, in random order: the same on every platform.

    Python promises to keep the sequence of `random()` for a seed, but not what `sample` makes of it.
    """
    dice, pool = random.Random(seed), list(items)
    for index in range(count):
        other = index + int(dice.random() * (len(pool) - index))
        pool[index], pool[other] = pool[other], pool[index]
    return pool[:count]


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
