"""The prompt that the demo measures beside its vector: what else could be done for the same task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..report.records import Prompted

if TYPE_CHECKING:
    from ...runtime.evaluation import Evaluation
    from ...runtime.llama.model import TinyLoraLlama
    from ...tasks import Task


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
