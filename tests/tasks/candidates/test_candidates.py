"""Candidates: the shipped files, files of one's own, and the examples that are drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks import Completion, Preamble, Sample, Task, load_task
from tinylora_edge.tasks.candidates import (
    Candidates,
    draw_examples,
    load_candidates,
    shipped_candidates,
    validation_prompts,
)

GENERATED = sorted(set(shipped_candidates()) - {"gsm8k"})
PLAIN = Task("plain", [Sample(f"p{i}") for i in range(20)], [Sample("h")], lambda c, s: 1.0)
ANSWERED = Task(
    "answered", [Sample(f"p{i}", f"a{i}") for i in range(20)], [Sample("h", "a")], lambda c, s: 1.0
)


@pytest.mark.parametrize("name", shipped_candidates())
def test_a_task_has_at_least_twelve_system_prompts(name: str) -> None:
    task = Task(name, [], [], lambda c, s: 1.0)
    systems = load_candidates(task).systems
    assert len(systems) >= 12
    assert len({" ".join(system.casefold().split()) for system in systems}) == len(systems)


@pytest.mark.parametrize("name", GENERATED)
def test_a_task_has_examples_and_they_are_right(name: str) -> None:
    task, written = load_task(name), load_candidates(load_task(name)).examples
    if any(sample.answer is not None for sample in task.train):
        assert not written
        written = draw_examples(task, 8)
    assert len(written) >= 8
    known: dict[str, Sample] = {}
    for seed in range(30 if load_candidates(task).examples else 1):
        known |= {sample.text: sample for sample in load_task(name, seed=seed, held_out=1).train}
    for example in written:
        answer = Completion(str(example.answer), ended=True, tokens=8)
        assert task.score(answer, known[example.text]) == 1, example


@pytest.mark.parametrize("name", GENERATED)
def test_no_held_out_word_is_given_away(name: str) -> None:
    task = load_task(name)
    trained = {word for sample in task.train for word in re.findall(r"[^\W\d_]+", sample.text.casefold())}
    given = load_candidates(task)
    texts = " ".join([*given.systems, *(example.text for example in given.examples)]).casefold()
    for sample in task.held_out:
        new = set(re.findall(r"[^\W\d_]+", sample.text.casefold())) - trained
        assert not new & set(re.findall(r"[^\W\d_]+", texts)), sample.text


def test_examples_are_drawn_by_seed_from_the_training_split() -> None:
    found = draw_examples(ANSWERED, 4, without={"p1", "p2"})
    assert found == draw_examples(ANSWERED, 4, without={"p1", "p2"})
    assert len({example.text for example in found}) == 4
    assert not {example.text for example in found} & {"p1", "p2", "h"}
    draws = [draw_examples(ANSWERED, 4, draw=draw) for draw in range(3)]
    draws.append(draw_examples(ANSWERED, 4, seed=1))
    assert len({tuple(example.text for example in draw) for draw in draws}) == 4
    Preamble(None, found)


def test_written_examples_are_for_tasks_without_answers() -> None:
    written = [Sample("q1", "w1"), Sample("h", "w2")]
    assert draw_examples(PLAIN, 1, written=written) == (written[0],), "never a held-out prompt"
    assert draw_examples(ANSWERED, 1, written=written)[0] not in written
    with pytest.raises(TrainError, match="task plain has no answers for worked examples: its 20 training"):
        draw_examples(PLAIN, 2)
    with pytest.raises(TrainError, match="21 worked examples of task answered were asked for, and 20"):
        draw_examples(ANSWERED, 21)


def test_validation_prompts_are_half_at_most() -> None:
    found = validation_prompts(PLAIN, 50, seed=3)
    assert len({sample.text for sample in found}) == 10
    assert found == validation_prompts(PLAIN, 50, seed=3) != validation_prompts(PLAIN, 50, seed=4)
    with pytest.raises(TrainError, match="has 1 training prompt"):
        validation_prompts(Task("one", [Sample("p")], [], lambda c, s: 1.0), 4)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"system": "Be brief."}\n\n{"question": "q", "answer": "a"}\n')
    assert load_candidates(PLAIN, path) == Candidates(("Be brief.",), (Sample("q", "a"),))
    with pytest.raises(TrainError, match=r"no candidates .* task plain .*candidates=load_candidates\("):
        load_candidates(PLAIN)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"sytem": "x"}, "there is no key 'sytem': did you mean 'system'"),
        ({"question": "x"}, 'found "question", expected either "system", or "question" and "answer"'),
        ({}, "found no key, expected either"),
        ({"system": " "}, '"system" is blank text, expected text'),
        ({"question": "q", "answer": 3}, '"answer" is 3, expected text'),
        ({"system": "Be brief."}, '"system" is the same as at'),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: dict[str, object], expected: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"system": "Be brief."}\n' + json.dumps(row) + "\n")
    with pytest.raises(TrainError, match=re.escape(f"{path}:2")) as refused:
        load_candidates(PLAIN, path)
    assert expected in str(refused.value)
