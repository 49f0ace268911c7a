"""The groups of a step: sampled and rewarded (GRPO), given (SFT), or drawn by the base, to stay near it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainError
from ..runtime.batch import Batch, Generation
from ..tasks import Completion, Sample, Task
from ..vector import MicroVector
from .grpo import Loss, advantages, normaliser
from .learner import Gradient, Group, Learner

ANCHOR_TOKENS = 24
"""Tokens of an answer of the base that v is held near to."""
_PULLED = 8  # prompts a step

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
        batch: draws the completions, in the deployed model or in a copy of it in another type.
        encode: of prompts.
        decode: of completions.
        each: completions a prompt.
        loss: what the loss is made of.

    Attributes:
        lowest: reward so far, 0 where none was below it: what exploded gets it.
    """

    def __init__(
        self, task: Task, batch: Batch, *, encode: Encode, decode: Decode, each: int, loss: Loss
    ) -> None:
        self.task, self.loss = task, loss
        self._batch, self._encode, self._decode, self._each = batch, encode, decode, each
        self.lowest = 0.0

    def collect(
        self, v: NDArray[np.float32], samples: Sequence[Sample], seed: tuple[int, ...]
    ) -> tuple[list[Group], dict[str, Any]]:
        """Draw and score; groups whose rewards are all equal are left out before any gradient work."""
        began = time.monotonic()
        drawn, rewards = self.draw(v, samples, each=self._each, temperature=self.task.temperature, seed=seed)
        chosen = []
        for sample, group, scores in zip(samples, drawn, rewards, strict=True):
            advantage = advantages(scores, scale=self.loss.scale)
            whole = np.array(
                [not rollout.exploded for rollout in group]
            )  # what exploded has no log-probability
            if advantage[whole].any():
                kept = [rollout for rollout in group if not rollout.exploded]
                chosen.append((self._encode(sample), kept, advantage[whole]))
        lengths = [len(r.tokens) for group in drawn for r in group]
        metrics = {
            "reward": float(np.mean(rewards)),
            "signal": len(chosen) / len(samples),
            "length": float(np.mean(lengths)),
            "tokens": int(np.sum(lengths)),
            "draw_s": time.monotonic() - began,
        }
        if exploded := sum(r.exploded for group in drawn for r in group):
            metrics["exploded"] = exploded
        return self._groups(chosen), metrics

    def draw(
        self,
        v: NDArray[np.float32],
        samples: Sequence[Sample],
        *,
        each: int,
        temperature: float,
        seed: tuple[int, ...],
    ) -> tuple[list[list[Generation]], list[list[float]]]:
        """Return `each` completions of every sample, and their rewards."""
        self._batch.swap(MicroVector(v))
        drawn = self._batch.generate(
            [self._encode(sample).tolist() for sample in samples],
            samples=each,
            max_tokens=self.task.max_tokens,
            temperature=temperature,
            seed=seed,
        )
        rewards = self.task.scores(
            [Completion(self._decode(r.tokens), r.ended, len(r.tokens), r.exploded) for r in drawn],
            [sample for sample in samples for _ in range(each)],
            lowest=self.lowest,
        )
        self.lowest = min([self.lowest, *rewards])
        starts = range(0, len(drawn), each)
        return [drawn[i : i + each] for i in starts], [rewards[i : i + each] for i in starts]

    def _groups(
        self, chosen: list[tuple[NDArray[np.int32], list[Generation], NDArray[np.float32]]]
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


class Anchor:
    """The base's own answers to general prompts, and how v is pulled back to them.

    They are drawn once, before the first step, and a step takes the next few of them.

    Args:
        learner: of log-probabilities at temperature 1.
        batch: draws the answers.
        prompts: token ids of each.
        weight: of a nat a token of KL(base || present policy) in the loss.
        seed: of the answers.
    """

    def __init__(
        self,
        learner: Learner,
        batch: Batch,
        prompts: Sequence[NDArray[np.int32]],
        *,
        weight: float,
        seed: int,
    ) -> None:
        self.weight = weight
        self._learner, self._batch, self._prompts, self._seed = learner, batch, prompts, seed
        self._groups: list[Group] = []

    def gradient(self, v: NDArray[np.float32], step: int) -> Gradient:
        """Return KL(base || v) on the prompts of a step, in nats a token, and its gradient by v.

        The learner's adapter is left at v.
        """
        if not self._groups:
            self._draw()
        chosen = [self._groups[i % len(self._groups)] for i in range(step * _PULLED, (step + 1) * _PULLED)]
        total = sum(len(group.completions[0]) for group in chosen)
        for group in chosen:
            group.weight = np.full(1, 1 / total, np.float32)
        self._learner.adapter.set(v)
        return self._learner.pull(chosen)

    def _draw(self) -> None:
        self._batch.swap(None)
        drawn = self._batch.generate(
            [prompt.tolist() for prompt in self._prompts],
            max_tokens=ANCHOR_TOKENS,
            temperature=1.0,
            seed=(self._seed, 5),
        )
        one = np.ones(1, np.float32)
        groups = [
            Group(prompt, [r.tokens], [r.logprobs], one, one)
            for prompt, r in zip(self._prompts, drawn, strict=True)
        ]
        adapter = self._learner.adapter
        adapter.set(np.zeros_like(adapter.start))
        # By the learner and not the sampler: the two do not agree exactly, and v must not make up for that.
        for group, reference in zip(groups, self._learner.measure(groups), strict=True):
            group.reference = reference
        self._groups = groups
