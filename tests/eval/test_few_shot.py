"""Prompts that compete with a vector: what is tried, what is left out; and the limit of answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tinylora_edge import TrainError
from tinylora_edge.eval import measure
from tinylora_edge.eval.measure import find_prompt, fitted, prompts_for
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.tasks import Completion, Preamble, Sample, Task, draw_examples, instruction
from tinylora_edge.tasks.rewards import json_value, label, text


def letters(completion: Completion, sample: Sample) -> float:
    return sum(c.isalpha() for c in completion.text) / max(len(completion.text), 1)


@pytest.fixture
def task() -> Task:
    """72 prompts with answers, 8 of them held out."""
    prompts = [Sample(f"prompt {i}", answer=f"answer {i}") for i in range(72)]
    return Task("letters", prompts[:64], prompts[64:], letters, max_tokens=5, temperature=1.0)


def test_whole_answers_are_limited_in_tokens_and_others_as_they_were(llm: TinyLoraLlama) -> None:
    samples = [Sample(f"prompt {i}", json.dumps({"letter": "abc"[: i % 4]})) for i in range(8)]
    longest = max(len(llm.encode_answer(sample)) for sample in samples)
    task = Task("letters", samples[:6], samples[6:], json_value, max_tokens=4 * longest)
    assert fitted(task, llm).max_tokens == longest + longest // 2
    assert fitted(replace(task, max_tokens=3), llm).max_tokens == 3
    assert fitted(replace(task, reward=text), llm).max_tokens == 4 * longest


def find(llm: TinyLoraLlama, task: Task, seconds: float = 100.0) -> tuple[Preamble, list[dict[str, float]]]:
    return find_prompt(llm, task, task.train[:6], seconds=seconds, n_threads=1)


def test_the_best_of_all_draws_shows_nothing_that_is_judged(llm: TinyLoraLlama, task: Task) -> None:
    few = replace(task, train=task.train[:14])  # 8 are left to be shown
    found, tried = find(llm, few)
    assert [(None, each["draw"], each["examples"]) for each in tried] == prompts_for(few) != []
    best = max(each["score"] for each in tried)
    assert len(found.examples) == min(each["examples"] for each in tried if each["score"] == best)
    assert {each.text for each in found.examples} <= {sample.text for sample in few.train[6:]}


def test_the_obvious_prompt_is_among_those_that_are_tried(llm: TinyLoraLlama) -> None:
    """The instruction that lists the labels, with examples for each of them, and without any."""
    samples = [Sample(f"p{i}", answer="abcdefghijkl"[i % 12]) for i in range(120)]
    task = Task("letters", samples[:100], samples[100:], label, max_tokens=2)
    said = instruction(task)
    assert said is not None
    assert said.splitlines()[1:] == [*"abcdefghijkl"]
    assert prompts_for(task)[:2] == [(said, 0, 12), (None, 0, 12)]
    assert len({each.answer for each in draw_examples(task, 12)}) == 12
    found, tried = find_prompt(llm, task, task.train[:2], seconds=100.0, n_threads=1)
    assert {each["instruction"] for each in tried} == {True, False}
    assert any(each["instruction"] and not each["examples"] for each in tried)
    assert found.system in (said, None)


def test_what_does_not_fit_is_left_out(llm: TinyLoraLlama, task: Task) -> None:
    long = [*task.train[:6], *(Sample("x" * 70 + str(i), answer="y") for i in range(30))]
    assert {each["examples"] for each in find(llm, replace(task, train=long))[1]} == {2, 4}
    with pytest.raises(TrainError, match="pass the model's context"):
        find(llm, replace(task, held_out=[Sample("x" * 490)]))
    with pytest.raises(TrainError, match="0 training prompts have an answer"):
        find(llm, replace(task, train=task.train[:6]))


def test_an_early_end(llm: TinyLoraLlama, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tried = find(llm, task, seconds=0.0)
    assert [each["examples"] for each in tried] == [8], "the first is tried, however long it takes"
    now = iter(range(10_000))
    monkeypatch.setattr(measure.time, "monotonic", lambda: float(next(now)))
    _, tried = find(llm, task, seconds=14.5)  # a second an answer behind the first: the fourth is given up
    assert [each["examples"] for each in tried] == [8, 8, 4]
