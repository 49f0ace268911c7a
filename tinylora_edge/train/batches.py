"""The groups of a step: answers that are given (SFT) or drawn (GRPO), or the base's own ones, rehearsed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.batch import Batch
from ..tasks import Sample, Task
from ..vector import MicroVector
from .learner import Gradient, Group, Learner, advantages

KEEP = 1.0
"""Weight in the loss of KL(base || v), in nats a token on general prompts (docs/EVIDENCE.md)."""
REHEARSED = 4
"""General prompts a step."""
REHEARSED_TOKENS = 24
"""Most tokens of the base's answer to a general prompt."""
WHITENED = 32
"""Answers that the coordinates of steps are computed from."""
_AT_ONCE = 32  # general prompts that are answered together


class Answers:
    """The answers to a task's prompts that are learned from: `given` ones by SFT, `drawn` ones by GRPO.

    Drawn answers are scored by the task's shaped reward, where it has one.

    Attributes:
        batch: of the deployed model, which draws answers.
        each: completions that are drawn for a prompt.
        temperature: at which answers are drawn.
    """

    def __init__(self, task: Task, batch: Batch, each: int) -> None:
        self.task, self.batch, self.each, self.temperature = task, batch, each, task.temperature
        self._lessons = replace(task, reward=task.shaped or task.reward)
        self._last: tuple[Any, tuple[list[Group], dict[str, Any]]] | None = None

    def given(self, samples: Sequence[Sample]) -> list[Group]:
        """Return the prompts with the samples' own answers, each with the token that ends it."""
        one, prompts = np.ones(1, np.float32), self._prompts(samples)
        answers = [np.array(self.batch.llm.encode_answer(sample), np.int32) for sample in samples]
        return [Group(prompt, [answer], one) for prompt, answer in zip(prompts, answers, strict=True)]

    def drawn(
        self, vector: MicroVector, samples: Sequence[Sample], seed: tuple[int, ...]
    ) -> tuple[list[Group], dict[str, Any]]:
        """Draw and score answers; return them with figures of the draw.

        A call that repeats the last one returns the same answers. So the temperature, the coordinates of
        steps and the first step come from one draw.
        """
        key = vector, [*map(id, samples)], self.temperature, seed
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        began, prompts, each = time.monotonic(), self._prompts(samples), self.each
        drawn = self.batch.generate(
            [prompt.tolist() for prompt in prompts],
            vectors=vector,
            samples=each,
            max_tokens=self.task.max_tokens,
            temperature=self.temperature,
            seed=seed,
            schema=self.task.schema,
            tools=[sample.tools for sample in samples],
        )
        answers = [self.batch.completion(one) for one in drawn]
        rewards = self._lessons.scores(answers, [sample for sample in samples for _ in range(each)])
        groups = []
        for number, prompt in enumerate(prompts):
            own = slice(number * each, (number + 1) * each)
            tokens, logprobs = zip(*((one.tokens, one.logprobs) for one in drawn[own]), strict=True)
            groups.append(Group(prompt, tokens, advantages(rewards[own]), logprobs, drawn[own][0].grammar))
        lengths = [len(one.tokens) for one in drawn]
        metrics = {
            "reward": float(np.mean(rewards)),
            "signal": sum(bool(group.advantage.any()) for group in groups) / len(groups),
            "length": float(np.mean(lengths)),
            "tokens": int(np.sum(lengths)),
            "draw_s": time.monotonic() - began,
        }
        self._last = key, (groups, metrics)
        return groups, metrics

    def _prompts(self, samples: Sequence[Sample]) -> list[NDArray[np.int32]]:
        return [np.array(tokens, np.int32) for tokens in self.batch.encode(samples)]


class Rehearsal:
    """The base's own answers to general prompts, which v is held to while it learns something else.

    A step rehearses the next `REHEARSED` prompts. `batch` answers a prompt greedily when it is first needed.
    """

    def __init__(self, learner: Learner, batch: Batch, prompts: Sequence[NDArray[np.int32]]) -> None:
        self._learner, self._batch, self._prompts = learner, batch, prompts
        self._groups: dict[int, Group] = {}

    def gradient(self, step: int) -> Gradient:
        """Return KL(base || v) on the answers of a step, in nats a token, and its gradient by v."""
        numbers = range(step * REHEARSED, (step + 1) * REHEARSED)
        return self._learner.pull([self._group(number % len(self._prompts)) for number in numbers])

    def _group(self, number: int) -> Group:
        if number not in self._groups:
            first = number - number % _AT_ONCE
            prompts = self._prompts[first : first + _AT_ONCE]
            drawn = self._batch.generate(
                [each.tolist() for each in prompts],
                vectors=self._learner.adapter.under,
                max_tokens=REHEARSED_TOKENS,
            )
            for each in drawn:
                prompt, one = prompts[each.prompt], np.ones(1, np.float32)
                self._groups[first + each.prompt] = Group(prompt, [each.tokens], one)
        return self._groups[number]
