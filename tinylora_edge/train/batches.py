"""The groups of a step: sampled and rewarded (GRPO), or answers that are given (SFT)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainError
from ..tasks import Completion, Sample, Task
from ..vector import MicroVector
from .grpo import Loss, advantages, normaliser
from .learner import Group
from .rollouts import Rollout, Rollouts

Encode = Callable[[Sample], NDArray[np.int32]]
"""sample -> token ids of its prompt (or of its answer), int32 [n]."""
Decode = Callable[[NDArray[np.int32]], str]
"""token ids -> text."""


class Batches(Protocol):
    """A source of the groups of a step."""

    loss: Loss

    def collect(
        self, v: NDArray[np.float32], samples: Sequence[Sample], seed: tuple[int, ...]
    ) -> tuple[list[Group], dict[str, Any]]:
        """Return the groups that have signal, and metrics of the step."""


class Sampled:
    """GRPO: completions drawn under the present v, scored by the task's reward.

    Args:
        task: reward, token limit and temperature.
        rollouts: draws the completions.
        encode: of prompts.
        decode: of completions.
        each: completions a prompt.
        loss: what the loss is made of.
    """

    def __init__(
        self, task: Task, rollouts: Rollouts, *, encode: Encode, decode: Decode, each: int, loss: Loss
    ) -> None:
        self.task, self.loss = task, loss
        self._rollouts, self._encode, self._decode, self._each = rollouts, encode, decode, each

    def collect(
        self, v: NDArray[np.float32], samples: Sequence[Sample], seed: tuple[int, ...]
    ) -> tuple[list[Group], dict[str, Any]]:
        """Draw and score; groups whose rewards are all equal are left out before any gradient work."""
        began = time.monotonic()
        drawn, rewards = self.draw(v, samples, each=self._each, temperature=self.task.temperature, seed=seed)
        chosen = []
        for sample, group, scores in zip(samples, drawn, rewards, strict=True):
            advantage = advantages(scores, scale=self.loss.scale)
            if advantage.any():
                chosen.append((self._encode(sample), group, advantage))
        lengths = [len(r.tokens) for group in drawn for r in group]
        metrics = {
            "reward": float(np.mean(rewards)),
            "signal": len(chosen) / len(samples),
            "length": float(np.mean(lengths)),
            "tokens": int(np.sum(lengths)),
            "draw_s": time.monotonic() - began,
        }
        return self._groups(chosen), metrics

    def draw(
        self,
        v: NDArray[np.float32],
        samples: Sequence[Sample],
        *,
        each: int,
        temperature: float,
        seed: tuple[int, ...],
    ) -> tuple[list[list[Rollout]], list[list[float]]]:
        """Return `each` completions of every sample, and their rewards."""
        drawn = self._rollouts.draw(
            MicroVector(v),
            [self._encode(sample) for sample in samples],
            samples=each,
            max_tokens=self.task.max_tokens,
            temperature=temperature,
            seed=seed,
        )
        rewards = [[self._score(r, sample) for r in g] for sample, g in zip(samples, drawn, strict=True)]
        return drawn, rewards

    def _score(self, rollout: Rollout, sample: Sample) -> float:
        text = self._decode(rollout.tokens)
        return self.task.score(Completion(text, rollout.ended, len(rollout.tokens)), sample)

    def _groups(
        self, chosen: list[tuple[NDArray[np.int32], list[Rollout], NDArray[np.float32]]]
    ) -> list[Group]:
        lengths = [len(r.tokens) for _, group, _ in chosen for r in group]
        weights: Iterator[np.float32] = iter(
            normaliser(lengths, self.task.max_tokens, self.loss.kind) if lengths else []
        )
        return [
            Group(
                prompt,
                [r.tokens for r in group],
                [r.logprobs for r in group],
                advantage,
                np.array([next(weights) for _ in group], np.float32),
            )
            for prompt, group, advantage in chosen
        ]


class GivenAnswers:
    """SFT: cross-entropy on the given answers, the paper's comparison.

    With advantage 1 and no importance weights, the gradient of GRPO's loss is that of cross-entropy.

    Args:
        task: whose samples have answers.
        encode: of prompts.
        encode_answer: of answers, with the end token.
    """

    loss = Loss(importance_cap=0.0)

    def __init__(self, task: Task, *, encode: Encode, encode_answer: Encode) -> None:
        if any(sample.answer is None for sample in task.train):
            raise TrainError(
                f"task {task.name} has training prompts without an answer: --method sft needs one for each"
            )
        self._encode, self._encode_answer = encode, encode_answer

    def collect(
        self, v: NDArray[np.float32], samples: Sequence[Sample], seed: tuple[int, ...]
    ) -> tuple[list[Group], dict[str, Any]]:
        """Return the prompts with their answers."""
        answers = [self._encode_answer(sample) for sample in samples]
        total = sum(len(answer) for answer in answers)
        one, weight = np.ones(1, np.float32), np.full(1, 1 / total, np.float32)
        groups = [
            Group(self._encode(sample), [answer], [np.zeros(len(answer), np.float32)], one, weight)
            for sample, answer in zip(samples, answers, strict=True)
        ]
        return groups, {"tokens": total, "length": total / len(samples)}
