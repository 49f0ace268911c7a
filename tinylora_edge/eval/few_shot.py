"""Few-shot prompts, which compete with a vector: the best of a few draws of worked examples."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import TrainError
from ..runtime.batch import Stopped
from ..runtime.model import PersonalizedModel
from ..tasks import Preamble, Sample, Task, draw_examples
from ..vector import MicroVector
from .scores import Answered, evaluate

TRIED = tuple(itertools.product(range(3), (2, 4, 8)))
"""The prompts that are tried: which draw, and of how many examples. An early end leaves out whole draws."""


@dataclass(frozen=True)
class Tried:
    """A prompt that was tried: how many examples, which draw of so many, and its mean reward."""

    examples: int
    draw: int
    score: float


@dataclass(frozen=True)
class FewShot:
    """The prompt to compare a vector with.

    Attributes:
        preamble: the best draw; of equals one with the fewest examples.
        tried: all that were measured to their end.
    """

    preamble: Preamble
    tried: tuple[Tried, ...]

    def record(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {**self.preamble.record(), "tried": [asdict(each) for each in self.tried]}


def find_examples(
    llm: PersonalizedModel,
    task: Task,
    judged: Sequence[Sample],
    *,
    seconds: float,
    vector: MicroVector | None = None,
    n_threads: int | None = None,
    answered: Answered = lambda count: None,
) -> FewShot:
    """Find the worked examples that do best for the base, or a vector, among a task's own training prompts.

    They are chosen by the prompts of `judged`, which are not shown themselves, nor measured on. After so many
    `seconds` whatever is being tried is given up. `answered` is told of progress: of as many answers as there
    are `TRIED` times `judged`.

    Raises:
        TrainError: the task has no answers to show; no draw leaves room in the model's context for the
            longest prompt, judged or held out, and its answer; none was tried to its end in the time.
    """
    hidden = {sample.text for sample in judged}
    source = replace(task, train=[sample for sample in task.train if sample.text not in hidden])
    longest = max((*task.held_out, *judged), key=lambda sample: len(llm.encode(sample)[0]))
    found: dict[Tried, Preamble] = {}
    refused, end = None, time.monotonic() + seconds

    def going(count: int) -> None:
        answered(count)
        if time.monotonic() > end:
            raise Stopped

    for draw, count in TRIED:
        try:
            preamble = Preamble(examples=draw_examples(source, count, seed=draw))
            prompts = [preamble.before(sample) for sample in (*judged, longest)]
            batch = llm.batch(prompts, task.max_tokens, n_threads=n_threads)
        except TrainError as error:
            refused = refused or error
            continue
        try:
            with batch:
                one = evaluate(batch, task, vector, samples=judged, preamble=preamble, answered=going)
        except Stopped:
            break
        found[Tried(count, draw, one.mean)] = preamble
    if not found:
        raise refused or TrainError(f"none was tried to its end within {seconds:.0f} s")
    best = max(found, key=lambda tried: (tried.score, -tried.examples))
    return FewShot(found[best], tuple(found))
