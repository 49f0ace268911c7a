"""Lessons: a teacher's answers, and the prompts with and without the teacher that they followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...errors import TrainError
from ...runtime.distillation.lesson import Lesson, Tokens
from ...runtime.llama.batch import Batch
from ...runtime.llama.model import TinyLoraLlama
from ...runtime.llama.prompts import encode
from ...system import atomic_write
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
    files: Sequence[Path] = (),
    report: Callable[[str], None] = lambda name: None,
) -> list[Lesson]:
    """Ask the deployed model, prompted by each teacher, and return the lessons in order.

    For a large model the answers take longer than what is learned from them, so they can be kept.

    Args:
        llm: the deployed model.
        chosen: behaviours, each with its questions.
        max_tokens: of an answer.
        temperature: of sampling.
        seed: of sampling. A lesson depends on its behaviour, its questions and the seed alone.
        n_threads: cores to use.
        files: where the answers to each behaviour are kept, and taken from if they are there.
        report: called with the name of each behaviour whose answers are there.

    Raises:
        TrainError: a prompt with its answer passes the model's context; the message names the behaviour.
        VectorError: the model has no chat template.
        OSError: answers cannot be kept.
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
    places: Sequence[Path | None] = files or [None] * len(prompts)
    lessons = []
    with Batch(llm, n_ctx_seq=longest + max_tokens, sequences=16, n_threads=n_threads) as batch:
        for (behaviour, _), (told, bare), place in zip(chosen, prompts, places, strict=True):
            if place is not None and place.exists():
                answers = _read(place)
            else:
                drawn = batch.generate(
                    [prompt.tolist() for prompt in told],
                    max_tokens=max_tokens,
                    temperature=temperature,
                    seed=(seed, *behaviour.name.encode()),
                )
                answers = [each.tokens for each in drawn]
                if place is not None:
                    _keep(place, answers)
            lessons.append(Lesson(behaviour.name, told, bare, answers))
            report(behaviour.name)
    return lessons


def _keep(path: Path, answers: Sequence[Tokens]) -> None:
    with atomic_write(path) as file:
        np.savez(file, tokens=np.concatenate(answers), lengths=[len(each) for each in answers])


def _read(path: Path) -> list[Tokens]:
    with np.load(path) as file:
        return np.split(file["tokens"], np.cumsum(file["lengths"])[:-1])
