"""Prompts of the demo: one that does the same task without a vector, and one that the vector fixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..report.records import Prompted
from .answers import compare as ask
from .results import AnswerPair

if TYPE_CHECKING:
    from ...runtime.evaluation import Evaluation
    from ...runtime.llama.model import TinyLoraLlama
    from ...tasks import Task

_ASKED = 8  # candidates; of those that a batch raises, nearly all stand


def measure_prompt(
    llm: TinyLoraLlama, task: Task, vector: Evaluation, *, seed: int, threads: int
) -> Prompted:
    """Find a prompt for a task by a quick search, and measure it on the held-out prompts.

    Args:
        llm: the loaded model; the base answers, whatever vector it has.
        task: of the vector.
        vector: the vector's answers to the held-out prompts.
        seed: of the search.
        threads: of everything that computes.
    """
    from ...runtime.contests.search import search_quickly
    from ...runtime.evaluation import compare

    found = search_quickly(llm, task, seed=seed, n_threads=threads)
    measured = found.held_out
    assert measured is not None
    return Prompted.of(found, compare(measured, vector))


def find_fixed(
    llm: TinyLoraLlama, task: Task, base: Evaluation, vector: Evaluation, frame: bytes
) -> AnswerPair | None:
    """Return the answers to the first held-out prompt that the vector raises, or None where there is none.

    Answers come in batches where they are measured, and a batch rounds otherwise. So candidates are asked
    for again one at a time, as `run` does, and the first counts that the vector raises there too.

    Args:
        llm: the loaded model; it has the vector afterwards.
        task: of the vector.
        base, vector: the answers to the held-out prompts.
        frame: of the vector.
    """
    raised = [i for i in range(base.n) if vector.scores[i] > base.scores[i]]
    for i in raised[:_ASKED]:
        (pair,) = ask(llm, task, [task.held_out[i]], frame)
        if pair.personalized_reward > pair.base_reward:
            return pair
    return None
