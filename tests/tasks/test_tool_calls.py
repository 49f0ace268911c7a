"""The task `tool-calls`: the right function with the right arguments, and what is none of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from answers import said
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.tasks import Sample, Task
from tinylora_edge.tasks.generated.json_tasks import nearly_right_call, right_call
from tinylora_edge.tasks.guards import words

CALL = {"tool": "find", "arguments": {"item": "boot"}}
OFFER = {"call": ("name",), "visit": ("name",), "find": ("item",), "sell": ("item",)}
SAMPLE = Sample(
    "", json.dumps(CALL), {"call": CALL, "offer": OFFER, "text": "Help me find a boot, or call Amy."}
)


def scores(text: str, sample: Sample = SAMPLE, *, ended: bool = True) -> tuple[float, float]:
    completion = said(text, ended=ended)
    return right_call(completion, sample), nearly_right_call(completion, sample)


def call(function: Any, **arguments: Any) -> str:
    return json.dumps({"tool": function, "arguments": arguments})


def test_every_prompt_offers_four_functions_and_asks_for_one(tasks: dict[str, Task]) -> None:
    task = tasks["tool-calls"]
    for split in (task.train, task.held_out, task.shifted):
        positions: Counter[int] = Counter()
        for sample in split:
            offer, wanted = sample.data["offer"], sample.data["call"]
            assert len(offer) == 4
            assert all(f'"{function}"' in sample.text for function in offer)
            asked = set(words(sample.data["text"])) & set(offer)
            assert asked == {wanted["tool"]}, "the request names one of them"
            assert set(wanted["arguments"]) == set(offer[wanted["tool"]])
            assert scores(sample.answer or "", sample) == (1.0, 1.0)
            assert scores(sample.text, sample) == (0.0, 0.0)
            positions[list(offer).index(wanted["tool"])] += 1
        assert min(positions[place] for place in range(4)) > len(split) / 8, "no place is a good guess"


def test_some_prompts_offer_functions_of_different_arguments(tasks: dict[str, Task]) -> None:
    arguments = Counter(len(set(sample.data["offer"].values())) for sample in tasks["tool-calls"].train)
    assert min(arguments[1], arguments[2]) > 60


@pytest.mark.parametrize(
    "text",
    [
        '{"tool": "find", "arguments": {"item": "boot"}}',
        '{"arguments":{"item":"boot"},"tool":"find"}',
        '```json\n{\n  "tool": "find",\n  "arguments": {\n    "item": "boot"\n  }\n}\n```',
    ],
)
def test_right_calls(text: str) -> None:
    assert scores(text) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        (call("sell", item="boot"), 0.3),
        (call("find", item="help"), 0.3),
        (call("call", name="Amy"), 0.1),
        (call("find", item="Boot"), 0.3),
        (call("find", item="a boot"), 0.3),
        (call("find", item="boot") + "\nThe JSON object is:", 0.25),
        (call("find", item="boot") + call("sell", item="boot"), 0.25),
        (call("find", item="camera"), 0.0),  # not in the request
        (call("find", item=""), 0.0),
        (call("find", item=["boot"]), 0.0),
        (call("find", name="boot"), 0.0),
        (call("find", item="boot", name="boot"), 0.0),
        (call("find"), 0.0),
        (call("buy", item="boot"), 0.0),  # not on offer
        (call(["find"], item="boot"), 0.0),
        ('{"tool": "find", "item": "boot"}', 0.0),
        ('{"tool": "find", "arguments": "boot"}', 0.0),
        ('{"tool": "find" or "sell", "arguments": {"item": string}}', 0.0),
        ('{"tool": "find", "arguments": {"item": "boot"}, "x": 1}', 0.0),
        ('find(item="boot")', 0.0),
        ("", 0.0),
    ],
)
def test_what_comes_near(text: str, near: float) -> None:
    assert scores(text) == (0.0, pytest.approx(near))


def test_what_the_limit_cut_is_not_all() -> None:
    assert scores(SAMPLE.answer or "", ended=False) == (0.0, 0.25)


def test_one_answer_for_all_prompts_pays_little(tasks: dict[str, Task]) -> None:
    samples = tasks["tool-calls"].train
    for text in {sample.answer or "" for sample in samples[:8]}:
        near = [scores(text, sample)[1] for sample in samples]
        assert sum(near) / len(near) < 0.03


@given(
    st.sampled_from(["call", "find", "sell", "buy", ""]),
    st.dictionaries(
        st.sampled_from(["name", "item"]), st.sampled_from(["boot", "Amy", "", "find"]) | st.integers()
    ),
    st.booleans(),
)
def test_only_the_call_gets_1(function: str, arguments: dict[str, Any], ended: bool) -> None:
    score, shaped = scores(call(function, **arguments), ended=ended)
    right = ended and function == "find" and arguments == {"item": "boot"}
    assert score == float(right)
    assert shaped == 1.0 if right else shaped <= 0.5
