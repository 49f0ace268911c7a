"""Tasks: prompts, and a reward whose values are checked; and preambles, which stand before prompts."""

from __future__ import annotations

import math
import numbers
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import TrainError
from .sample import Sample

_Message = dict[str, str]
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
        shaped: the same goal with credit for coming near, to learn from; `reward` is what is measured.
        shifted: more samples to measure on, of another kind than those of `held_out`: rarer words, other
            phrasings of the request, longer inputs. None of their prompts is in `train` or `held_out`.
        preamble: what all prompts begin with, as `Preamble.record` returns it; None without one.
        schema: what answers are held to while they are drawn, in training and in use: a JSON schema, or a
            list of labels, one of which is the answer; None where they are free.
        drawn: all samples that were held out where the data do not say which; else none.
        notes: sentences that a user should read about the data, such as duplicates that were dropped.
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
    drawn: Sequence[Sample] = ()
    notes: Sequence[str] = ()

    def score(self, completion: Completion, sample: Sample) -> float:
        """Return the reward of one completion, as a finite float.

        Raises:
            TrainError: the reward raised an exception, or returned no finite real number. A bool is none: it
                is more often a forgotten expression than a score.
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
        """Return the rewards of completions, one for each sample."""
        return [self.score(*each) for each in zip(completions, samples, strict=True)]

    def _where(self, completion: Completion, sample: Sample) -> str:
        prompt = (sample.without_preamble or sample).text
        return f"task {self.name} (prompt {_short(prompt)!r}, completion {_short(completion.text)!r})"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@dataclass(frozen=True)
class Preamble:
    """Messages that begin every request: none, a system prompt, samples with answers as examples, or both."""

    system: str | None = None
    examples: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        if self.system is not None and not self.system.strip():
            raise TrainError("the system prompt is blank: write one, or leave it out")
        for example in self.examples:
            if (example.raw and not example.unprompted) or not (example.answer or "").strip():
                raise TrainError(f"the worked example {example.text[:60]!r} is raw, or has no answer to show")

    def __bool__(self) -> bool:
        return self.system is not None or bool(self.examples)

    def record(self) -> dict[str, Any]:
        """Return it as JSON takes it: `system`, and `examples` with `question` and `answer`."""
        examples = [{"question": each.prompt, "answer": each.answer} for each in self.examples]
        return {"system": self.system, "examples": examples}

    def before_task(self, task: Task) -> Task:
        """Return the task with the preamble before each prompt, and the same reward.

        A vector that is trained on it is used behind this preamble, and its gain is over the preamble alone.
        Training prompts that are shown as examples are left out.

        TrainError: a held-out prompt is shown, the task has a preamble already, or a prompt is raw.
        """
        if not self:
            return task
        if task.preamble is not None:
            raise TrainError(f"task {task.name} has a preamble already: give all of it at once")
        examples = {example.text for example in self.examples}
        for sample in (*task.held_out, *task.shifted):
            if sample.text in examples:
                raise TrainError(
                    f"the worked example {sample.text[:60]!r} is a held-out prompt of task {task.name}: what "
                    "is measured on must not be shown. Take another example"
                )
        return replace(
            task,
            train=[self.before(sample) for sample in task.train if sample.text not in examples],
            held_out=[self.before(sample) for sample in task.held_out],
            shifted=[self.before(sample) for sample in task.shifted],
            preamble=self.record(),
        )

    def before(self, sample: Sample) -> Sample:
        """Return the sample with the preamble before its prompt; the rest is unchanged.

        A system prompt of its own stands behind the preamble's, in one message; those of examples are left
        out. A text without a prompt has other texts before it. A raw sample has no place for anything
        else: a TrainError says so.
        """
        if not self:
            return sample
        if sample.raw:
            if not sample.unprompted or self.system is not None:
                raise TrainError(
                    f"{sample.text[:60]!r} is raw: it goes past the chat template, so no system prompt can "
                    "stand before it, and examples before a text without a prompt alone"
                )
            texts = tuple(str(example.answer) for example in self.examples)
            return replace(sample, earlier=texts, without_preamble=sample.without_preamble or sample)
        own, turns = _split(sample)
        system = "\n\n".join(text for text in (self.system, own) if text is not None)
        messages = [{"role": "system", "content": system}] if system else []
        for example in self.examples:
            messages += [*_split(example)[1], {"role": "assistant", "content": str(example.answer)}]
        return replace(sample, prompt=(*messages, *turns), without_preamble=sample.without_preamble or sample)


def draw_examples(task: Task, count: int, *, seed: int = 0) -> tuple[Sample, ...]:
    """Return worked examples for a preamble: training samples with an answer, none of them held out.

    Each answer is shown once before one is shown again, as far as the count goes. They are the same ones for
    the same arguments on every machine.
    """
    unseen = {sample.text for sample in (*task.held_out, *task.shifted)}
    shown = (each for each in task.train if each.unprompted or (each.answer is not None and not each.raw))
    pool = {sample.text: sample for sample in shown if sample.text not in unseen}
    if count > len(pool):
        raise TrainError(
            f"{count} worked examples of task {task.name} were asked for, and {len(pool)} training prompts "
            "have an answer: ask for fewer, or give the prompts answers"
        )
    name = Path(task.name).name  # so that a file's examples do not depend on its folder
    dice, samples = random.Random(f"{name}/examples/{seed}/{count}/0"), list(pool.values())
    # For a seed, Python promises the same sequence of `random()` in every version, but not of `sample`.
    for index in range(len(samples)):
        other = index + int(dice.random() * (len(samples) - index))
        samples[index], samples[other] = samples[other], samples[index]
    times = Counter[str | None]()
    shown_before = []
    for sample in samples:
        shown_before.append(times[sample.answer])
        times[sample.answer] += 1
    order = sorted(range(len(samples)), key=shown_before.__getitem__)
    return tuple(samples[index] for index in order[:count])


def _split(sample: Sample) -> tuple[str | None, Sequence[_Message]]:
    if isinstance(sample.prompt, str):
        return None, [{"role": "user", "content": sample.prompt}]
    first, *rest = sample.prompt
    if first["role"] == "system" and rest:
        return first["content"], rest
    return None, sample.prompt
