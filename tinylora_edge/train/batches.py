"""The groups of a step: sampled and rewarded (GRPO), given (SFT), or drawn by the base, to stay near it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainError
from ..runtime.batch import Batch
from ..runtime.batch_context import Generation
from ..tasks import Completion, Sample, Task
from ..vector import MicroVector
from .grpo import advantages
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

    def collect(
        self, vector: MicroVector, samples: Sequence[Sample], seed: tuple[int, ...]
    ) -> tuple[list[Group], dict[str, Any]]:
        """Return the groups that have signal, and metrics of the step."""


class Sampled:
    """GRPO: completions drawn under the present v, `each` a prompt, scored by the task's reward.

    `batch` draws them, in the deployed model or in a copy of it in another type. `lowest` is the lowest
    reward so far, 0 where none was below it: what exploded gets it.
    """

    def __init__(self, task: Task, batch: Batch, *, encode: Encode, decode: Decode, each: int) -> None:
        self.task = task
        self._batch, self._encode, self._decode, self._each = batch, encode, decode, each
        self.lowest = 0.0

    def collect(
        self, vector: MicroVector, samples: Sequence[Sample], seed: tuple[int, ...]
    ) -> tuple[list[Group], dict[str, Any]]:
        """Draw and score; groups whose rewards are all equal are left out before any gradient work."""
        began = time.monotonic()
        drawn, rewards = self.draw(
            vector, samples, each=self._each, temperature=self.task.temperature, seed=seed
        )
        groups = []
        for sample, group, scores in zip(samples, drawn, rewards, strict=True):
            # What exploded has no log-probability.
            kept = [
                (each.tokens, each.logprobs, advantage)
                for each, advantage in zip(group, advantages(scores), strict=True)
                if not each.exploded
            ]
            if any(advantage for *_, advantage in kept):
                tokens, logprobs, advantage = zip(*kept, strict=True)
                groups.append(Group(self._encode(sample), tokens, np.array(advantage, np.float32), logprobs))
        lengths = [len(each.tokens) for group in drawn for each in group]
        metrics = {
            "reward": float(np.mean(rewards)),
            "signal": len(groups) / len(samples),
            "length": float(np.mean(lengths)),
            "tokens": int(np.sum(lengths)),
            "draw_s": time.monotonic() - began,
        }
        if exploded := sum(each.exploded for group in drawn for each in group):
            metrics["exploded"] = exploded
        return groups, metrics

    def draw(
        self,
        vector: MicroVector,
        samples: Sequence[Sample],
        *,
        each: int,
        temperature: float,
        seed: tuple[int, ...],
    ) -> tuple[list[list[Generation]], list[list[float]]]:
        """Return `each` completions of every sample, and their rewards."""
        drawn = self._batch.generate(
            [self._encode(sample).tolist() for sample in samples],
            vectors=vector,
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


class GivenAnswers:
    """SFT: cross-entropy on the given answers with the tokens that end them: the paper's comparison."""

    def __init__(self, task: Task, *, encode: Encode, encode_answer: Encode) -> None:
        if any(sample.answer is None for sample in task.train):
            raise TrainError(
                f"task {task.name} has training prompts without an answer: --method sft needs one for each"
            )
        self._encode, self._encode_answer = encode, encode_answer

    def collect(
        self, vector: MicroVector, samples: Sequence[Sample], seed: tuple[int, ...]
    ) -> tuple[list[Group], dict[str, Any]]:
        """Return the prompts with their answers."""
        groups = [
            Group(self._encode(sample), [self._encode_answer(sample)], np.ones(1, np.float32))
            for sample in samples
        ]
        total = sum(len(group.completions[0]) for group in groups)
        return groups, {"tokens": total, "length": total / len(samples)}


class Anchor:
    """The base's own answers to general prompts, and how v is pulled back to them.

    `batch` draws them once, before the first step, and a step takes the next few of them. `learner` is one at
    temperature 1; `weight` is that of a nat a token of KL(base || present policy) in the loss.
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
        """Return KL(base || v) on the prompts of a step, in nats a token, and its gradient by v."""
        if not self._groups:
            self._draw()
        chosen = [self._groups[i % len(self._groups)] for i in range(step * _PULLED, (step + 1) * _PULLED)]
        self._learner.adapter.set(v)
        return self._learner.pull(chosen)

    def _draw(self) -> None:
        drawn = self._batch.generate(
            [prompt.tolist() for prompt in self._prompts],
            max_tokens=ANCHOR_TOKENS,
            temperature=1.0,
            seed=(self._seed, 5),
        )
        groups = [
            Group(prompt, [each.tokens], np.ones(1, np.float32))
            for prompt, each in zip(self._prompts, drawn, strict=True)
        ]
        self._learner.adapter.set(np.zeros(self._learner.adapter.v.shape, np.float32))
        # By the learner and not the sampler: the two do not agree exactly, and v must not make up for that.
        for group, reference in zip(groups, self._learner.measure(groups), strict=True):
            group.reference = reference
        self._groups = groups
