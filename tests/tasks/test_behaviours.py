"""Behaviours: teacher and student, files of one's own, and that nothing tasks measure on is learned from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks.behaviours import Behaviour, load_behaviours

Write = Callable[..., Path]


SHORT: dict[str, Any] = {"name": "short", "system": "Be short."}
LAST: dict[str, Any] = {"name": "last", "examples": [{"question": "hat, gate", "answer": "gate"}]}


def test_the_teacher_sees_prompt_examples_and_question() -> None:
    behaviour = Behaviour(**LAST | {"system": "Name the last word."})
    assert behaviour.prompted("kite, hill").prompt == (
        {"role": "system", "content": "Name the last word."},
        {"role": "user", "content": "hat, gate"},
        {"role": "assistant", "content": "gate"},
        {"role": "user", "content": "kite, hill"},
    )


def test_a_file_of_ones_own(write: Write) -> None:
    we = {"name": "we", "system": "Say we.", "questions": ["Why?", "How?"]}
    assert load_behaviours(write(SHORT, "", LAST, we)) == tuple(Behaviour(**b) for b in (SHORT, LAST, we))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"name": "a"', "not JSON"),
        ({"name": " ", "system": "a"}, "the behaviour ' ' has a blank text"),
        ({"name": "a"}, "'a' has no teacher: expected a system prompt, examples, or both"),
        ({"name": "a", "sytem": "b"}, "'sytem' is unknown: expected examples, name, questions, system"),
        ({"name": "a", "examples": [{"question": "b", "answer": 5}]}, "expected list[dict[str, str]]"),
        ({"name": "a", "examples": [{"question": "b"}]}, "an example has question: expected"),
        (SHORT, "there is another behaviour 'short'"),
    ],
)
def test_a_malformed_behaviour_is_named(write: Write, line: Any, message: str) -> None:
    path = write(SHORT, "", line, LAST)
    with pytest.raises(TrainError, match=rf"^{re.escape(str(path))}:3: .*{re.escape(message)}"):
        load_behaviours(path)
