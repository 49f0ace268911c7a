"""The groups of a step: sampled and rewarded (GRPO), given (SFT), or the base's own answers, rehearsed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainError
from ..runtime.batch import Batch, Generation
from ..tasks import Sample, Task
from ..vector import MicroVector
from .learner import Gradient, Group, Learner, advantages

KEEP = 1.0
"""Weight of KL(base || v), in nats a token on general prompts, in the loss (docs/EVIDENCE.md)."""
REHEARSED = 4
"""General prompts a step."""
REHEARSED_TOKENS = 24
"""Tokens at most of the base's answer to one."""
WHITENED = 32
"""Answers that the coordinates of steps are computed from."""
_AT_ONCE = 32  # general prompts that are answered together

Encode = Callable[[Sample], NDArray[np.int32]]
"""sample -> token ids of its prompt (or of its answer), int32 [n]."""


class Drawn(NamedTuple):
    """The completions of every sample, their rewards, and the seconds that both took."""

    completions: list[list[Generation]]
    rewards: list[list[float]]
    seconds: float


class Sampled:
    """GRPO: completions drawn under the present v, `each` a prompt, scored by the task's reward.

    Training uses the task's shaped reward, where it has one; `greedy` answers are judged by its reward.

    Attributes:
        temperature: at which completions are drawn.
        batch: of the deployed model, which draws them.
    """

    def __init__(self, task: Task, batch: Batch, *, encode: Encode, each: int) -> None:
        self.task, self.temperature, self.batch = task, task.temperature, batch
        self._lessons = replace(task, reward=task.shaped or task.reward)
        self._encode, self._each = encode, each
        self._last: tuple[Any, Drawn] | None = None

    def collect(
        self, vector: MicroVector, samples: Sequence[Sample], seed: tuple[int, ...]
    ) -> tuple[list[Group], dict[str, Any]]:
        """Draw and score; groups whose rewards are all equal are left out before any gradient work."""
        drawn, rewards, seconds = self._draw(vector, samples, seed)
        groups = []
        for sample, group, scores in zip(samples, drawn, rewards, strict=True):
            advantage = advantages(scores)
            if advantage.any():
                tokens, logprobs = zip(*((each.tokens, each.logprobs) for each in group), strict=True)
                groups.append(Group(self._encode(sample), tokens, advantage, logprobs))
        lengths = [len(each.tokens) for group in drawn for each in group]
        metrics = {
            "reward": float(np.mean(rewards)),
            "signal": len(groups) / len(samples),
            "length": float(np.mean(lengths)),
            "tokens": int(np.sum(lengths)),
            "draw_s": seconds,
        }
        return groups, metrics

    def likely(self, vector: MicroVector, samples: Sequence[Sample], seed: tuple[int, ...]) -> list[Group]:
        """Return completions that a vector draws: of the first samples, about `WHITENED` in all."""
        drawn, *_ = self._draw(vector, samples, seed)
        ones, first = np.ones(self._each, np.float32), max(1, WHITENED // self._each)
        pairs = zip(samples[:first], drawn, strict=False)
        return [Group(self._encode(sample), [each.tokens for each in group], ones) for sample, group in pairs]

    def greedy(self, vector: MicroVector, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """Return the rewards of greedy answers in the deployed model: float64 [samples]."""
        how: dict[str, Any] = {"max_tokens": self.task.max_tokens, "schema": self.task.schema}
        (answers,) = self.batch.answer_each([vector], samples, **how)
        return np.array(self.task.scores(answers, samples), np.float64)

    def _draw(self, vector: MicroVector, samples: Sequence[Sample], seed: tuple[int, ...]) -> Drawn:
        """Return what is drawn; the same once more is what was drawn last.

        So the first step learns from the answers that found the temperature, and takes its coordinates from
        them.
        """
        key = vector, [*map(id, samples)], self.temperature, seed
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        began = time.monotonic()
        drawn = self.batch.generate(
            [self._encode(sample).tolist() for sample in samples],
            vectors=vector,
            samples=self._each,
            max_tokens=self.task.max_tokens,
            temperature=self.temperature,
            seed=seed,
            schema=self.task.schema,
        )
        each, answers = self._each, [self.batch.completion(one) for one in drawn]
        rewards = self._lessons.scores(answers, [sample for sample in samples for _ in range(each)])
        own = [slice(i, i + each) for i in range(0, len(drawn), each)]
        found = Drawn([drawn[i] for i in own], [rewards[i] for i in own], time.monotonic() - began)
        self._last = key, found
        return found


class Demonstrations:
    """SFT: cross-entropy on the given answers with the tokens that end them: the paper's comparison."""

    def __init__(self, task: Task, *, encode: Encode, encode_answer: Encode) -> None:
        missing = sum(sample.answer is None for sample in task.train)
        if missing:
            raise TrainError(
                f"{missing} of {len(task.train)} training prompts of task {task.name} have no answer: "
                "--method sft needs one for each"
            )
        self._encode, self._encode_answer = encode, encode_answer

    def collect(
        self, vector: MicroVector, samples: Sequence[Sample], seed: tuple[int, ...]
    ) -> tuple[list[Group], dict[str, Any]]:
        """Return the prompts with their answers."""
        groups = self.groups(samples)
        total = sum(len(group.completions[0]) for group in groups)
        return groups, {"tokens": total, "length": total / len(samples)}

    def groups(self, samples: Sequence[Sample]) -> list[Group]:
        """Return the prompts with their answers."""
        one = np.ones(1, np.float32)
        return [Group(self._encode(each), [self._encode_answer(each)], one) for each in samples]


class Rehearsal:
    """The base's own answers to general prompts, which v is held to while it learns something else.

    The next `REHEARSED` prompts are part of a step. `batch` draws the answers greedily, when they are needed.
    """

    def __init__(self, learner: Learner, batch: Batch, prompts: Sequence[NDArray[np.int32]]) -> None:
        self._learner, self._batch, self._prompts = learner, batch, prompts
        self._groups: dict[int, Group] = {}

    def gradient(self, step: int) -> Gradient:
        """Return KL(base || v) on the prompts of a step, in nats a token, and its gradient by v."""
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
