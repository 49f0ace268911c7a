"""`search_prompts`: the best prompt for a task, by a search on training prompts, measured on held-out ones.

What is searched: every system prompt of the candidates alone, worked examples alone, some numbers of them and
several draws of each, and the best system prompts with the examples. All answer the same validation prompts,
first a few; the better ones answer more, and the best on all is the winner. Validation prompts are drawn from
the training split; neither they nor held-out ones are ever shown as examples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import TrainError
from ...tasks import Preamble, Sample, Task
from ...tasks.candidates import (
    Candidates,
    any_candidates,
    draw_examples,
    load_candidates,
    validation_prompts,
)
from ..evaluation import Evaluation, Report, evaluate
from ..model import PersonalizedModel
from .contest import fitting

EXAMPLES: tuple[int, ...] = (0, 1, 2, 4, 8)
"""Numbers of worked examples that a search tries."""

_FIRST = 24
"""Validation prompts that every trial answers; those that stay answer twice as many, and so on."""
_KEEP = 3
"""One in so many trials stays at each doubling, and always at least `_FINALISTS`."""
_FINALISTS = 6
_FEW = 6
"""System prompts of a quick search."""
_SYSTEMS = 3
"""System prompts that are tried together with examples: the best on the first prompts."""


@dataclass(frozen=True)
class Trial:
    """A prompt that a search tried.

    Attributes:
        preamble: the prompt.
        draw: which draw of examples it has; None where it has none.
        prompt_tokens: mean of a request, chat template included.
        evaluation: on the first validation prompts, as many as it answered.
    """

    preamble: Preamble
    draw: int | None
    prompt_tokens: float
    evaluation: Evaluation

    def record(self) -> dict[str, Any]:
        """Return the figures as JSON takes them."""
        return {
            **self.preamble.record(),
            "draw": self.draw,
            "prompt_tokens": self.prompt_tokens,
            "n": self.evaluation.n,
            "mean": self.evaluation.mean,
            "standard_error": self.evaluation.standard_error,
        }


@dataclass(frozen=True, repr=False)
class PromptSearch:
    """The outcome of a search.

    Attributes:
        trials: everything that was tried, the best first: those with more answers before those with fewer.
        left_out: what was not tried, and why.
        validation: prompts that the best one was chosen on.
        answers: that all trials took together.
        seconds: that the search took on this machine, without the held-out prompts.
        held_out: the best one on held-out prompts; None where that was not asked for.
    """

    trials: tuple[Trial, ...]
    left_out: tuple[str, ...]
    validation: int
    answers: int
    seconds: float
    held_out: Evaluation | None = None

    @property
    def best(self) -> Trial:
        """The winner; no prompt at all may be it."""
        return self.trials[0]

    def __repr__(self) -> str:
        mean = f"validation {self.best.evaluation.mean:.4f}, n = {self.validation}"
        return f"PromptSearch({len(self.trials)} prompts, {self.answers} answers, best: {mean})"

    def record(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        found = self.held_out
        figures = None
        if found is not None:
            figures = {"n": found.n, "mean": found.mean, "standard_error": found.standard_error}
        return {
            "tried": len(self.trials),
            "answers": self.answers,
            "validation": self.validation,
            "seconds": self.seconds,
            "best": self.best.record(),
            "held_out": figures,
            "left_out": list(self.left_out),
            "trials": [trial.record() for trial in self.trials],
        }


def search_prompts(
    llm: PersonalizedModel,
    task: Task,
    candidates: Candidates | None = None,
    *,
    examples: Sequence[int] = EXAMPLES,
    draws: int = 3,
    validation: int = 96,
    held_out: Sequence[Sample] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    sequences: int = 32,
    n_threads: int | None = None,
    report: Report = lambda figures: None,
) -> PromptSearch:
    """Find the best prompt for a task on the base: what a vector has to be compared with.

    The same arguments give the same result on one machine and build. Nothing is kept between calls.

    Args:
        llm: a loaded model. Neither its vector nor its context is touched; the base answers.
        task: prompts, reward and token limit.
        candidates: system prompts, and examples for a task without answers; None: those that are shipped.
        examples: numbers of worked examples to try. With 0 the system prompts are tried alone, too.
        draws: of each number of examples.
        validation: training prompts to choose by, at most half of all.
        held_out: prompts that the winner is measured on; None: the task's; empty: it is not measured.
        temperature: 0 for greedy answers.
        seed: of validation prompts, examples and sampling.
        sequences: answers that are generated at the same time.
        n_threads: cores to use; by default all that the engine would take.
        report: called before every trial.

    Raises:
        TrainError: no candidates are shipped for the task, it has a single training prompt, the prompts pass
            the context without any candidate, or the reward fails.
        VectorError: the model has no chat template.
    """
    start = time.perf_counter()
    given = load_candidates(task) if candidates is None else candidates
    chosen = validation_prompts(task, validation, seed=seed)
    options: dict[str, Any] = {"temperature": temperature, "seed": seed}
    threads: dict[str, Any] = {"sequences": sequences, "n_threads": n_threads}
    search = _Search(llm, task, chosen, options, threads, report)
    shown = list(_shown(task, given, examples, draws, seed, chosen, search.left_out))
    systems = given.systems if 0 in examples else ()
    alone = [(Preamble(), None), *((Preamble(system), None) for system in systems)]
    search.planned = len(alone) + len(shown) + len(shown) * min(_SYSTEMS, len(given.systems))
    search.try_all([*alone, *((Preamble(None, each), draw) for each, draw in shown)])
    best = _best_systems(search.trials, given.systems)
    search.try_all([(Preamble(system, each), draw) for system in best for each, draw in shown])
    search.narrow()
    found = PromptSearch(
        tuple(search.trials), tuple(search.left_out), len(chosen), search.answers, time.perf_counter() - start
    )
    measured = list(task.held_out if held_out is None else held_out)
    if not measured:
        return found
    return replace(found, held_out=search.ask(found.best.preamble, measured))


def search_quickly(
    llm: PersonalizedModel, task: Task, candidates: Candidates | None = None, **options: Any
) -> PromptSearch:
    """Find a good prompt with some two hundred answers: of the first system prompts and two examples.

    Args:
        llm, task: as for `search_prompts`.
        candidates: the same; where None and nothing is shipped for the task, examples alone are tried.
        options: further ones of `search_prompts`.

    Raises:
        TrainError, VectorError: as for `search_prompts`.
    """
    if candidates is None:
        candidates = any_candidates(task)
    few = replace(candidates, systems=candidates.systems[:_FEW])
    return search_prompts(llm, task, few, examples=(0, 2), draws=1, validation=16, **options)


class _Search:
    """A search under way.

    Args:
        llm, task: as for `search_prompts`.
        chosen: the validation prompts.
        options: of `evaluate`.
        threads: of `_population`.
        report: called before every trial.
    """

    def __init__(
        self,
        llm: PersonalizedModel,
        task: Task,
        chosen: Sequence[Sample],
        options: dict[str, Any],
        threads: dict[str, Any],
        report: Report,
    ) -> None:
        self._llm, self._task, self._chosen = llm, task, chosen
        self._options, self._threads, self._report = options, threads, report
        self.trials: list[Trial] = []
        self.left_out: list[str] = []
        self.answers = self.planned = 0

    def try_all(self, preambles: Sequence[tuple[Preamble, int | None]]) -> None:
        """Try prompts on the first validation prompts; one that passes the context is left out."""
        asked = self._chosen[:_FIRST]
        for preamble, draw in preambles:
            self._report({"what": "trying prompts", "done": len(self.trials), "all": self.planned})
            prompts = [preamble.before(sample) for sample in self._chosen]
            try:
                lengths = fitting(self._llm, prompts, self._task.max_tokens, preamble)
            except TrainError as error:
                if not preamble:
                    raise
                self.left_out.append(str(error))
                continue
            tokens = sum(lengths) / len(lengths)
            self.trials.append(Trial(preamble, draw, tokens, self._counted(preamble, asked)))
        self._sort()

    def narrow(self) -> None:
        """Let the better prompts answer more, until the best have answered all."""
        size = _FIRST
        while size < len(self._chosen):
            keep = max(_FINALISTS, len([t for t in self.trials if t.evaluation.n == size]) // _KEEP)
            more = self._chosen[size : 2 * size]
            for i, trial in enumerate(self.trials[:keep]):
                self._report({"what": f"best {keep} on {size + len(more)}", "done": i, "all": keep})
                here, rest = trial.evaluation, self._counted(trial.preamble, more)
                both = Evaluation(np.concatenate([here.scores, rest.scores]), [*here.answers, *rest.answers])
                self.trials[i] = replace(trial, evaluation=both)
            self._sort()
            size += len(more)

    def ask(self, preamble: Preamble, samples: Sequence[Sample]) -> Evaluation:
        """Return the base's answers behind a prompt."""
        asked = [preamble.before(sample) for sample in samples]
        with self._llm._population(asked, self._task.max_tokens, **self._threads) as batch:
            return evaluate(batch, self._task, None, samples=samples, preamble=preamble, **self._options)

    def _counted(self, preamble: Preamble, samples: Sequence[Sample]) -> Evaluation:
        self.answers += len(samples)
        return self.ask(preamble, samples)

    def _sort(self) -> None:
        # Of equal means the cheaper prompt is the better one; the order is stable beyond that.
        self.trials.sort(key=lambda t: (-t.evaluation.n, -t.evaluation.mean, t.prompt_tokens))


def _shown(
    task: Task,
    candidates: Candidates,
    numbers: Sequence[int],
    draws: int,
    seed: int,
    chosen: Sequence[Sample],
    left_out: list[str],
) -> Iterator[tuple[tuple[Sample, ...], int]]:
    """Yield the examples of every number and draw; where there are too few of them, say so."""
    without = {sample.text for sample in chosen}
    for number in sorted(set(numbers) - {0}):
        for draw in range(draws):
            try:
                found = draw_examples(
                    task, number, seed=seed, draw=draw, written=candidates.examples, without=without
                )
            except TrainError as error:
                left_out.append(str(error))
                break
            yield found, draw


def _best_systems(trials: Sequence[Trial], systems: Sequence[str]) -> list[str]:
    """Return the system prompts to try together with examples: the best alone, or else the first."""
    alone = [t.preamble.system for t in trials if t.preamble.system is not None and not t.preamble.examples]
    return [system for system in (alone or systems)[:_SYSTEMS] if system is not None]
