"""The student: the model without a prompt, and what it would take of R to say what the prompted one says.

A lesson is what a teacher answered, and the prompts with and without it that the answers followed. The
deployed engine draws the answers (`prepare_lessons`); the student sees them without the teacher and takes the
exact forward KL from the prompted model's next-token distributions to its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import TrainError
from ..runtime.batch import Batch
from ..runtime.llama.model import TinyLoraLlama
from ..tasks import Prompt
from ..tasks.behaviours import Behaviour
from .learner import Learner, chosen_logprobs, divergences

NOISE = 0.01
"""Nats a token: a prompt that changes less than this changes nothing. Quantized activations alone move the
answers of a small model by a fifth of it."""
_ROWS = 64  # of logits at the same time

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Lesson:
    """The questions of one behaviour as token ids, with the answers that the prompted model gave.

    Attributes:
        name: of the behaviour.
        prompted: int32 [n], a prompt with the teacher, for each question.
        unprompted: int32 [n], the same without.
        answers: int32 [n], sampled from the prompted model, with the token that ended it if there was one.
    """

    name: str
    prompted: list[Tokens]
    unprompted: list[Tokens]
    answers: list[Tokens]


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
        prompted = [encode(behaviour.messages(question)) for question in questions]
        longest = max(map(len, prompted))
        if longest + max_tokens > limit:
            raise TrainError(
                f"behaviour {behaviour.name!r} has a prompt of {longest} tokens, which with {max_tokens} to "
                f"answer pass the model's context of {limit}: shorten its teacher or its questions"
            )
        prompts.append((prompted, [encode(question) for question in questions]))
    longest = max(len(prompt) for prompted, _ in prompts for prompt in prompted)
    lessons = []
    with Batch(llm, n_ctx_seq=longest + max_tokens, sequences=16, n_threads=n_threads) as batch:
        for (behaviour, _), (prompted, unprompted) in zip(chosen, prompts, strict=True):
            drawn = batch.generate(
                [prompt.tolist() for prompt in prompted],
                max_tokens=max_tokens,
                temperature=temperature,
                seed=(seed, *behaviour.name.encode()),
            )
            lessons.append(Lesson(behaviour.name, prompted, unprompted, [each.tokens for each in drawn]))
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


def slopes(learner: Learner, lesson: Lesson, *, seed: Sequence[int]) -> Slopes:
    """Return what a lesson asks of R where v is 0, and how much any change of R would matter there.

    Several threads may do it at once, for different lessons.
    """
    basis, answers = learner.adapter.basis, [[answer] for answer in lesson.answers]
    with torch.no_grad():
        teacher = learner.outputs(lesson.prompted, answers)
    shape = len(basis.modules), len(answers), basis.rank, basis.rank
    r = torch.zeros(shape, device=teacher.device, requires_grad=True)
    outputs = learner.outputs(lesson.unprompted, answers, r)
    found = divergences(outputs, teacher, learner.head)
    dice = torch.Generator(teacher.device)
    dice.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    (divergence,) = torch.autograd.grad(found.sum(), [r], retain_graph=True)
    (score,) = torch.autograd.grad(_drawn(outputs, learner.head, dice).sum(), [r])
    tokens = np.array([len(answer) for answer in lesson.answers], np.int32)
    divergence, score = divergence.swapaxes(0, 1).cpu(), score.swapaxes(0, 1).cpu()
    return Slopes(divergence.numpy(), score.numpy(), float(found.detach().mean()), tokens)


def _drawn(outputs: Tensor, head: Tensor | None, dice: torch.Generator) -> Tensor:
    """Return the log-probabilities of tokens that the model draws itself at these places."""
    drawn = []
    with torch.no_grad():
        for rows in outputs.split(_ROWS):
            logits = rows if head is None else rows @ head.mT
            drawn.append(torch.multinomial(torch.softmax(logits.float(), -1), 1, generator=dice))
    return chosen_logprobs(outputs, head, torch.cat(drawn)[:, 0], 1.0)
