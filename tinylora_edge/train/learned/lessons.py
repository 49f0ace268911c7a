"""Lessons: a teacher's answers, and the prompts with and without the teacher that they followed."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import TrainError
from ...runtime.distillation.lesson import Lesson, Tokens
from ...runtime.llama.batch import Batch
from ...runtime.llama.model import TinyLoraLlama
from ...runtime.llama.prompts import encode
from ...tasks.behaviours import Behaviour

__all__ = ["Lesson", "Tokens", "prepare_lessons"]


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
