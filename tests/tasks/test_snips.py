"""SNIPS, which is shipped: what is held out is never trained on, and calls hold what was said."""

from __future__ import annotations

import json
from collections import Counter

from answers import said

from tinylora_edge.tasks import Sample, load_task
from tinylora_edge.tasks.files import rank

TASK = load_task("snips", held_out=200)


def call(sample: Sample) -> dict[str, dict[str, str]]:
    assert sample.answer is not None
    answer: dict[str, dict[str, str]] = json.loads(sample.answer)
    return answer


def test_no_held_out_utterance_is_trained_on() -> None:
    trained, held_out = ({rank(sample) for sample in side} for side in (TASK.train, TASK.held_out))
    assert (len(trained), len(held_out)) == (490, 140)
    assert not trained & held_out
    for side, count in ((TASK.train, 70), (TASK.held_out, 20)):
        assert set(Counter(call(sample)["name"] for sample in side).values()) == {count}


def test_arguments_are_words_of_the_utterance() -> None:
    for sample in (*TASK.train, *TASK.held_out):
        assert all(value in sample.text for value in call(sample)["arguments"].values())


def test_a_call_is_right_or_not() -> None:
    sample = TASK.held_out[0]
    right = call(sample)
    assert TASK.score(said(json.dumps(right)), sample) == 1
    name, *_ = right["arguments"]
    for arguments in ({}, right["arguments"] | {name: "other"}, right["arguments"] | {"more": "x"}):
        assert TASK.score(said(json.dumps(right | {"arguments": arguments})), sample) == 0


def test_intents_are_the_names_of_the_calls() -> None:
    intents = load_task("snips-intents", held_out=200)
    for one, other in zip(intents.held_out, TASK.held_out, strict=True):
        assert one.prompt == other.prompt
        assert json.loads(str(one.answer)) == {"intent": call(other)["name"]}
    assert (len(intents.train), intents.reward) == (490, TASK.reward)
