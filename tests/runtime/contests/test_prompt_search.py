"""The search for the best prompt: what it tries, how it narrows, and that the same call finds the same."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from tinylora_edge import TrainError
from tinylora_edge.runtime import TinyLoraLlama, search_prompts
from tinylora_edge.runtime.contests.search import search_quickly
from tinylora_edge.runtime.evaluation import evaluate
from tinylora_edge.tasks import Sample, Task
from tinylora_edge.tasks.candidates import Candidates, validation_prompts

ONE = {"n_threads": 1, "sequences": 8}
GIVEN = Candidates(tuple(f"Say {word}." for word in ("a", "bee", "sea", "day", "if")))


def test_a_search(llm: TinyLoraLlama, task: Task) -> None:
    events: list[dict[str, object]] = []
    found = search_prompts(
        llm, task, GIVEN, examples=(0, 1, 2), draws=2, validation=40, report=events.append, **ONE
    )
    alone, shown = 1 + 5, 2 * 2
    assert len(found.trials) == alone + shown + 3 * shown
    assert not any(a.preamble == b.preamble for a, b in itertools.combinations(found.trials, 2))
    sizes = [trial.evaluation.n for trial in found.trials]
    assert sizes == sorted(sizes, reverse=True)
    assert {size: sizes.count(size) for size in sizes} == {40: 7, 24: 15}, "a third of 22 goes on"
    assert found.answers == 22 * 24 + 7 * 16
    assert found.best.evaluation.mean == max(t.evaluation.mean for t in found.trials if t.evaluation.n == 40)
    assert all(event["done"] < event["all"] for event in events)

    validation = validation_prompts(task, 40)
    asked = {sample.text for sample in validation} | {sample.text for sample in task.held_out}
    for trial in found.trials:
        assert not asked & {example.text for example in trial.preamble.examples}
        assert trial.draw is None if not trial.preamble.examples else trial.draw in (0, 1)
    with llm._population(
        [found.best.preamble.before(s) for s in validation], task.max_tokens, **ONE
    ) as batch:
        again = evaluate(batch, task, None, samples=validation, preamble=found.best.preamble)
    assert np.array_equal(again.scores, found.best.evaluation.scores)
    assert found.held_out is not None
    assert found.held_out.n == len(task.held_out)
    record = json.loads(json.dumps(found.record()))
    assert record["best"]["mean"] == found.best.evaluation.mean
    assert len(record["trials"]) == record["tried"] == 22


def test_the_same_call_finds_the_same(llm: TinyLoraLlama, task: Task) -> None:
    one, same = (search_quickly(llm, task, GIVEN, held_out=(), seed=3, **ONE) for _ in range(2))
    assert [(t.preamble, t.evaluation.mean) for t in one.trials] == [
        (t.preamble, t.evaluation.mean) for t in same.trials
    ]
    assert one.held_out is None
    assert (len(one.trials), one.answers) == (1 + 5 + 1 + 3, 16 * 10)


def test_what_does_not_fit_is_left_out_and_said(llm: TinyLoraLlama, task: Task) -> None:
    long = replace(GIVEN, systems=(*GIVEN.systems, "x" * 600))
    found = search_prompts(llm, task, long, examples=(0, 64), draws=3, validation=4, held_out=(), **ONE)
    assert len(found.trials) == 1 + 5
    assert [line.partition(" has ")[0] for line in found.left_out] == [
        "the longest prompt behind the system prompt",
        *["the longest prompt behind 64 worked examples"] * 3,
        *["the longest prompt behind 64 worked examples and the system prompt"] * 9,
    ]


def test_a_task_without_answers_and_candidates(llm: TinyLoraLlama, task: Task) -> None:
    bare = replace(task, train=[Sample(sample.text) for sample in task.train])
    found = search_quickly(llm, bare, held_out=(), **ONE)
    assert len(found.trials) == 1
    assert "has no answers for worked examples" in found.left_out[0]
    with pytest.raises(TrainError, match="no candidates for a prompt are shipped for task own"):
        search_prompts(llm, bare, **ONE)
    with pytest.raises(TrainError, match="has 1 training prompt"):
        search_prompts(llm, replace(task, train=task.train[:1]), GIVEN, **ONE)
