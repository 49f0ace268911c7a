"""The task `records`: JSON objects with the true facts, and what comes near or only looks like one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from answers import said
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.tasks import Sample, Task

RECORD = {"name": "Olga", "age": 34, "pet": "snail"}


@pytest.fixture
def sample(tasks: dict[str, Task]) -> Sample:
    """A sample of known facts, in the task's own words."""
    one = next(sample for sample in tasks["records"].held_out if "pet" in sample.data["record"])
    return Sample(one.prompt, json.dumps(RECORD), {"record": RECORD})


def scores(task: Task, text: str, sample: Sample, *, ended: bool = True) -> tuple[float, float]:
    assert task.shaped is not None
    completion = said(text, ended=ended)
    return task.score(completion, sample), task.shaped(completion, sample)


def test_there_are_two_schemas(tasks: dict[str, Task]) -> None:
    for split in (tasks["records"].train, tasks["records"].held_out, tasks["records"].shifted):
        schemas = [tuple(sample.data["record"]) for sample in split]
        assert set(schemas) == {("name", "age", "pet"), ("seller", "item", "price")}
        assert min(map(schemas.count, set(schemas))) > len(split) / 4


def test_the_facts_stand_in_the_prompt(tasks: dict[str, Task]) -> None:
    task = tasks["records"]
    for sample in (*task.train, *task.held_out, *task.shifted):
        assert all(str(value) in sample.text for value in sample.data["record"].values())
        assert scores(task, sample.answer or "", sample) == (1.0, 1.0)
        assert scores(task, sample.text, sample) == (0.0, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Olga", "age": 34, "pet": "snail"}',
        '{"pet":"snail","age":34.0,"name":"Olga"}',
        '{"name": "Olga", "age": 34, "pet": "Snail"}',
        '\n{\n  "name": "Olga",\n  "age": 34,\n  "pet": "snail"\n}\n',
        '```json\n{"name": "Olga", "age": 34, "pet": "snail"}\n```',
    ],
)
def test_true_records(tasks: dict[str, Task], sample: Sample, text: str) -> None:
    assert scores(tasks["records"], text, sample) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ('{"name": "Olga", "age": 34, "pet": "a snail"}', 1 / 3),
        ('{"name": "Olga", "age": "34", "pet": "snail"}', 1 / 3),
        ('{"name": "Olga", "age": true, "pet": "a snail"}', 1 / 6),
        ('{"name": "Olga", "age": 34, "pet": "snail"}\n\nThis JSON object is', 0.25),
        ('```json\n{"name": "Olga", "age": 34, "pet": "snail"}\n```\nThis', 0.25),
        ('{"name": "Olga", "age": 34, "pet": "snail"} {"name": "Olga", "age": 34, "pet": "ant"}', 0.25),
        ('{"name": "Olga", "age": 34, "pet": "snail", "color": "brown"}', 0.0),
        ('{"name": "Olga", "age": 34}', 0.0),
        ('{"person": {"name": "Olga", "age": 34, "pet": "snail"}}', 0.0),
        ('[{"name": "Olga", "age": 34, "pet": "snail"}]', 0.0),
        ('{"name": string, "age": number, "pet": string}', 0.0),
        ('{"name": "string", "age": "number", "pet": "string"}', 0.0),
        ('{"name": null, "age": NaN, "pet": []}', 0.0),
        ('Here it is: {"name": "Olga", "age": 34, "pet": "snail"}', 0.0),
        ("{" * 5000, 0.0),
        ("", 0.0),
    ],
)
def test_what_comes_near(tasks: dict[str, Task], sample: Sample, text: str, near: float) -> None:
    assert scores(tasks["records"], text, sample) == (0.0, pytest.approx(near))


def test_what_the_limit_cut_is_not_all(tasks: dict[str, Task], sample: Sample) -> None:
    assert scores(tasks["records"], sample.answer or "", sample, ended=False) == (0.0, 0.25)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["Olga", "snail", "34"])),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(["name", "age", "pet", "x"]), VALUES), st.booleans())
def test_only_the_record_gets_1(value: dict[str, Any], ended: bool) -> None:
    from tinylora_edge.tasks.generated.json_tasks import nearly_true_record, true_record

    sample = Sample("", None, {"record": RECORD})
    completion = said(json.dumps(value), ended=ended)
    score, shaped = true_record(completion, sample), nearly_true_record(completion, sample)
    right = ended and value == RECORD and not isinstance(value["age"], bool)
    assert score == float(right)
    assert shaped == 1.0 if right else shaped <= 0.5
