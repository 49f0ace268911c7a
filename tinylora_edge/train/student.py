"""The student: the model without a prompt, whose R is fitted to what the prompted model says.

A lesson is what a teacher answered, and the prompts with and without it that the answers followed. The
deployed engine draws the answers (`prepare_lessons`); the student sees them without the teacher and takes the
exact forward KL from the prompted model's next-token distributions to its own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..basis import Basis
from ..errors import TrainError
from ..runtime.batch import Batch
from ..runtime.learning.contrast import Lesson, Tokens
from ..runtime.llama.model import TinyLoraLlama
from ..tasks import Prompt
from ..tasks.behaviours import Behaviour
from .adapter import Adapter, projected
from .learner import chosen_logprobs, divergences, pad, plain_head, prefix_cache, shared_prefix

ALIKE = 3.0
"""Tokens of an answer say something that is much alike: T of them say as much as T / 3 of many answers.

With the slopes of 23 prompts of unknown families (SmolLM2) a prior of this weight is the best, from two
questions, from four and from six. For 95 prompts that directions were learned from 1 to 1.5 is the best, and
this one leaves nine tenths of that.
"""
_ROWS = 64  # of logits at the same time


def prepare_lessons(
    llm: TinyLoraLlama,
    chosen: Sequence[tuple[Behaviour, Sequence[str]]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    n_threads: int,
) -> list[Lesson]:
    """Ask the deployed model, prompted by each teacher, and return the lessons in order.

    A lesson depends on its behaviour, its questions and the seed alone. A TrainError names a prompt that with
    its answer passes the model's context; a VectorError says that there is no chat template.
    """

    def encode(prompt: Prompt) -> Tokens:
        return np.array(llm.encode(prompt)[0], np.int32)

    limit = llm._model.n_ctx_train()
    prompts = []
    for behaviour, questions in chosen:
        told = [encode(behaviour.messages(question)) for question in questions]
        longest = max(map(len, told))
        if longest + max_tokens > limit:
            raise TrainError(
                f"behaviour {behaviour.name!r} has a prompt of {longest} tokens, which with {max_tokens} to "
                f"answer pass the model's context of {limit}: shorten its teacher or its questions"
            )
        prompts.append((told, [encode(behaviour.bare(question)) for question in questions]))
    longest = max(len(prompt) for told, _ in prompts for prompt in told)
    lessons = []
    with Batch(llm, n_ctx_seq=longest + max_tokens, sequences=16, n_threads=n_threads) as batch:
        for (behaviour, _), (told, bare) in zip(chosen, prompts, strict=True):
            drawn = batch.generate(
                [prompt.tolist() for prompt in told],
                max_tokens=max_tokens,
                temperature=temperature,
                seed=(seed, *behaviour.name.encode()),
            )
            lessons.append(Lesson(behaviour.name, told, bare, [each.tokens for each in drawn]))
    return lessons


@dataclass(frozen=True)
class Slopes:
    """The slopes of a lesson at R = 0, for each of its questions, summed over the tokens of the answer.

    Attributes:
        divergence: float32 [questions, M, k, k], of the KL to the prompted model, in nats.
        score: float32 [questions, M, k, k], of the log-probabilities of tokens that the bare model draws at
            the same places. Their outer products are, in the mean, the Fisher information of the answer.
        before: KL without any change, in nats a token.
        tokens: int32 [questions], of each answer.
    """

    divergence: NDArray[np.float32]
    score: NDArray[np.float32]
    before: float
    tokens: NDArray[np.int32]


class Student:
    """A frozen model, in evaluation mode, that learns lessons, with R as a whole or as a basis has it.

    Several threads may learn different lessons at once, where the model's weights are; what is returned lies
    in the host's memory.
    """

    def __init__(self, model: Any, basis: Basis) -> None:
        self._model = model
        self._head = plain_head(model)
        self._adapter = _FreeAdapter(model, basis)
        self._device = model.get_input_embeddings().weight.device
        self._zeros = torch.zeros(len(basis.modules), basis.rank, basis.rank, device=self._device)

    def close(self) -> None:
        """Give the model back as it was."""
        self._adapter.detach()

    def fit(
        self, lesson: Lesson, *, steps: int, spread: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], list[float]]:
        """Fit a vector to a lesson, as far as its answers outweigh a prior: the likeliest, by L-BFGS from 0.

        What is minimized is the KL a token and ALIKE / T of |z|^2 / 2, for T tokens of answers. The values
        are spread z, z standard normal before anything is seen. Returns them, float32 [n], and the KL of each
        pass, first the bare model's.
        """
        teacher, projection = self._teacher(lesson), self._adapter.basis.projection
        factor = torch.from_numpy(spread.astype(np.float32)).to(self._device)
        z = torch.zeros(projection.size, device=self._device, requires_grad=True)
        weight, losses = ALIKE / lesson.tokens, list[float]()

        def objective() -> Tensor:
            search.zero_grad()
            loss = self._loss(lesson, teacher, projected(factor @ z, projection))
            losses.append(float(loss.detach()))
            total = loss + weight * (z @ z) / 2
            total.backward()
            return total

        search = torch.optim.LBFGS([z], max_iter=steps, line_search_fn="strong_wolfe")
        search.step(objective)
        return (factor @ z).detach().cpu().numpy().copy(), losses

    def slopes(self, lesson: Lesson, *, seed: Sequence[int]) -> Slopes:
        """Return what a lesson asks of R, and how much any change of R would matter there."""
        r = self._zeros.unsqueeze(1).repeat(1, len(lesson.bare), 1, 1).requires_grad_(True)
        teacher = self._teacher(lesson)
        self._adapter.give(r)  # a row of the batch has an R of its own
        outputs = self._outputs(lesson.bare, lesson.answers, shared=0)
        found = divergences(outputs, teacher, self._head)
        dice = torch.Generator(self._device).manual_seed(
            int(np.random.SeedSequence(seed).generate_state(1)[0])
        )
        (divergence,) = torch.autograd.grad(found.sum(), [r], retain_graph=True)
        (score,) = torch.autograd.grad(self._drawn(outputs, dice).sum(), [r])
        tokens = np.array([len(answer) for answer in lesson.answers], np.int32)
        divergence, score = divergence.swapaxes(0, 1).cpu(), score.swapaxes(0, 1).cpu()
        return Slopes(divergence.numpy(), score.numpy(), float(found.detach().mean()), tokens)

    def _teacher(self, lesson: Lesson) -> Tensor:
        with torch.no_grad():
            self._adapter.give(self._zeros)
            return self._outputs(lesson.told, lesson.answers)

    def _loss(self, lesson: Lesson, teacher: Tensor, r: Tensor) -> Tensor:
        self._adapter.give(r)
        return divergences(self._outputs(lesson.bare, lesson.answers), teacher, self._head).mean()

    def _drawn(self, outputs: Tensor, dice: torch.Generator) -> Tensor:
        drawn = []
        with torch.no_grad():
            for rows in outputs.split(_ROWS):
                logits = rows if self._head is None else rows @ self._head.mT
                drawn.append(torch.multinomial(torch.softmax(logits.float(), -1), 1, generator=dice))
        tokens = torch.cat(drawn)[:, 0]
        return chosen_logprobs(outputs, self._head, tokens, 1.0)

    def _outputs(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], shared: int | None = None
    ) -> Tensor:
        """Return what decides each token of the answers: hidden states, or logits where those do not."""
        # what all prompts begin with runs once, with one R for all rows
        shared = shared_prefix(prompts) if shared is None else shared
        rows = [
            np.concatenate([prompt[shared:], answer[:-1]])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        tokens, mask = (each.to(self._device) for each in pad(rows))
        run = self._model if self._head is None else self._model.base_model
        options: dict[str, Any] = {"use_cache": False}
        if shared:
            options = {"use_cache": True, "cache": prefix_cache(run, prompts, shared)}
        seen = torch.cat([mask.new_ones(len(rows), shared), mask], 1).long()
        outputs: Tensor = run(tokens, attention_mask=seen, **options)[0]
        deciding = [
            range(len(prompt) - shared - 1, len(row)) for prompt, row in zip(prompts, rows, strict=True)
        ]
        pairs = [(row, place) for row, places in enumerate(deciding) for place in places]
        row, place = torch.tensor(pairs, device=self._device).T
        return outputs[row, place]


class _FreeAdapter(Adapter):
    """An adapter whose R are given, by each thread for its own passes, and not made of a v."""

    def __init__(self, model: Any, basis: Basis) -> None:
        super().__init__(model, basis)
        self._given = threading.local()

    def give(self, r: Tensor) -> None:
        """Use these R in the passes of this thread: float32 [M, k, k], or [M, rows, k, k] with one a row."""
        self._given.r = r

    def R(self) -> Tensor:
        given: Tensor = self._given.r
        return given
