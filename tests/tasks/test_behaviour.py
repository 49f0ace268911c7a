"""One behaviour: what teacher and student see, and which behaviours there cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks.behaviours import Behaviour

EXAMPLES = (("hat, gate", "gate"), ("drum, lake", "lake"))


def test_the_teacher_sees_prompt_examples_and_question_the_student_the_question() -> None:
    behaviour = Behaviour("last", system="Name the last word.", examples=EXAMPLES)
    assert behaviour.messages("kite, hill") == [
        {"role": "system", "content": "Name the last word."},
        {"role": "user", "content": "hat, gate"},
        {"role": "assistant", "content": "gate"},
        {"role": "user", "content": "drum, lake"},
        {"role": "assistant", "content": "lake"},
        {"role": "user", "content": "kite, hill"},
    ]
    assert behaviour.bare("kite, hill") == [{"role": "user", "content": "kite, hill"}]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "'x' has no teacher: expected a system prompt, examples, or both"),
        ({"system": " "}, "'x' has a blank text"),
        ({"examples": (("a", ""),)}, "'x' has a blank text"),
        ({"system": "a", "family": ""}, "'x' has a blank text"),
        ({"system": "a", "near": ("",)}, "'x' has a blank text"),
        ({"system": "a", "questions": (*"abc", "\n")}, "'x' has a blank text"),
        ({"system": "a", "split": "train"}, "split of the behaviour 'x' is 'train', expected \"learn\" or"),
        (
            {"system": "a", "questions": ("b", "c", "d")},
            "'x' has 3 questions, expected at least 4, or none to take the general ones",
        ),
        ({"system": "a", "questions": ("b", "c", "d", " B")}, "has the question ' B' twice: expected once"),
        (
            {"examples": EXAMPLES, "questions": ("b", "c", "d", "hat,  gate")},
            "the question 'hat,  gate' twice",
        ),
        ({"examples": (("a", "b"), ("a", "c"))}, "the question 'a' twice"),
    ],
)
def test_what_cannot_be_a_behaviour(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError) as caught:
        Behaviour("x", **parts)
    assert message in str(caught.value)
