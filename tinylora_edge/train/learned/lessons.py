"""Lessons: a teacher's answers, and the prompts with and without the teacher that they followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainError
from ...runtime.llama.batch import Batch
from ...runtime.llama.model import TinyLoraLlama
from ...runtime.llama.prompts import encode
from ...tasks.behaviours import Behaviour

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Lesson:
    """The questions of one behaviour as token ids, with the answers that the prompted model gave.

    Attributes:
        name: of the behaviour.
        told: int32 [n], a prompt with the teacher, for each question.
        bare: int32 [n], the same without.
        answers: int32 [n], sampled from the prompted model, with the token that ended it if there was one.
    """

    name: str
    told: list[Tokens]
    bare: list[Tokens]
    answers: list[Tokens]

    @property
    def tokens(self) -> int:
        """Number of tokens that are learned from."""
        return sum(map(len, self.answers))


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

    Args:
        llm: the deployed model.
        chosen: behaviours, each with its questions.
        max_tokens: of an answer.
        temperature: of sampling.
        seed: of sampling. A lesson depends on its behaviour, its questions and the seed alone.
        n_threads: cores to use.

    Raises:
        TrainError: a prompt with its answer passes the model's context; the message names the behaviour.
        VectorError: the model has no chat template.
    """
    limit = llm._model.n_ctx_train()
    prompts = []
    for behaviour, questions in chosen:
        told = [encode(llm, behaviour.messages(question)) for question in questions]
        longest = max(map(len, told))
        if longest + max_tokens > limit:
            raise TrainError(
                f"behaviour {behaviour.name!r} has a prompt of {longest} tokens, which with {max_tokens} to "
                f"answer pass the model's context of {limit}: shorten its teacher or its questions"
            )
        prompts.append((told, [encode(llm, behaviour.bare(question)) for question in questions]))
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
