"""A user's own files of behaviours and questions: what may be left out, and errors with file and line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks.behaviours import Behaviour, load_behaviours, load_questions

Write = Callable[..., Path]

SHORT = {"name": "short", "system": "Be short."}
LAST = {"name": "last", "examples": [{"question": "hat, gate", "answer": "gate"}]}
QUESTIONS = [{"question": text} for text in ("Why?", "How?", "When?", "Where?")]


# Behaviours


def test_a_line_needs_a_name_and_a_teacher(write: Write) -> None:
    assert load_behaviours(write(SHORT, "", LAST)) == (
        Behaviour("short", "own", "Be short.", split="learn"),
        Behaviour("last", "own", examples=(("hat, gate", "gate"),), split="learn"),
    )


def test_a_line_may_say_everything(write: Write) -> None:
    questions = ["kite, hill", "comb, lake", "bee, barn", "egg, hat"]
    row = LAST | {"family": "lists", "system": "Name it.", "questions": questions, "near": ["list-lookup"]}
    (found,) = load_behaviours(str(write(row | {"split": "held_out"})))
    assert found == Behaviour(
        "last",
        "lists",
        "Name it.",
        (("hat, gate", "gate"),),
        tuple(questions),
        ("list-lookup",),
        "held_out",
    )


def test_one_side_of_a_file(write: Write) -> None:
    path = write(SHORT, LAST | {"family": "lists", "split": "held_out"})
    assert [one.name for one in load_behaviours(path)] == ["short", "last"]
    assert [one.name for one in load_behaviours(path, split="learn")] == ["short"]
    assert [one.name for one in load_behaviours(path, split="held_out")] == ["last"]


def test_a_side_without_behaviours(write: Write) -> None:
    with pytest.raises(
        TrainError,
        match=r'own\.jsonl: none of its 2 behaviours has the split "held_out", expected at least one',
    ):
        load_behaviours(write(SHORT, LAST), split="held_out")


@pytest.mark.parametrize("load", [load_behaviours, load_questions])
def test_a_side_that_there_is_not(write: Write, load: Callable[..., Any]) -> None:
    with pytest.raises(TrainError, match=r'^split is \'train\', expected "learn", "held_out", or None'):
        load(write(SHORT), split="train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"name": "a"', "not JSON: "),
        ('["a"]', "a list of 1, expected a JSON object"),
        (b'{"name": "\xff"}', "not UTF-8 text"),
        ({}, 'there is no "name", expected one with text'),
        ({"system": "a"}, 'there is no "name"'),
        ({"name": 5, "system": "a"}, '"name" is 5, expected text'),
        ({"name": " ", "system": "a"}, '"name" is blank text, expected text'),
        ({"name": "a"}, "the behaviour 'a' has no teacher: expected a system prompt, examples, or both"),
        ({"name": "a", "examples": []}, "the behaviour 'a' has no teacher"),
        ({"name": "a", "system": ["b"]}, '"system" is a list of 1, expected text'),
        ({"name": "a", "system": ""}, '"system" is blank text, expected text'),
        ({"name": "a", "sytem": "b"}, "there is no key 'sytem': did you mean 'system'?"),
        ({"name": "a", "system": "b", "question": ["c"]}, "no key 'question': did you mean 'questions'?"),
        (
            {"name": "a", "system": "b", "zzz": 1},
            "no key 'zzz': expected name, family, system, examples, questions, near, split",
        ),
        ({"name": "a", "system": "b", "family": None}, '"family" is null, expected text'),
        (
            {"name": "a", "system": "b", "near": "brevity"},
            "\"near\" is the string 'brevity', expected a list",
        ),
        ({"name": "a", "system": "b", "near": [1]}, '"near" has 1 as number 1, expected text'),
        ({"name": "a", "system": "b", "questions": "c"}, "\"questions\" is the string 'c', expected a list"),
        (
            {"name": "a", "system": "b", "questions": ["c", ["d"]]},
            '"questions" has a list of 1 as number 2, expected text',
        ),
        (
            {"name": "a", "system": "b", "questions": ["c", "d"]},
            "the behaviour 'a' has 2 questions, expected at least 4, or none to take the general ones",
        ),
        ({"name": "a", "system": "b", "questions": [*"cdefc"]}, "has the question 'c' twice"),
        ({"name": "a", "examples": {"question": "b"}}, "\"examples\" is an object with the keys 'question'"),
        (
            {"name": "a", "examples": ["b"]},
            'example 1 is the string \'b\', expected {"question": ..., "answer": ...}',
        ),
        ({"name": "a", "examples": [{"question": "b"}]}, 'example 1: there is no "answer"'),
        (
            {"name": "a", "examples": [{"question": "b", "answr": "c"}]},
            "example 1: there is no key 'answr': did you mean 'answer'?",
        ),
        (
            {"name": "a", "examples": [{"question": "b", "answer": 5}]},
            'example 1: "answer" is 5, expected text',
        ),
        (
            {"name": "a", "examples": [{"role": "user", "content": "b"}]},
            "example 1: there is no key 'role': expected question, answer",
        ),
        (
            {"name": "a", "system": "b", "split": "train"},
            '"split" is the string \'train\', expected "learn" or "held_out"',
        ),
        ({"name": "a", "system": "b", "split": ["learn"]}, '"split" is a list of 1, expected "learn"'),
        ({"name": "a", "system": "b", "split": None}, '"split" is null, expected "learn"'),
    ],
)
def test_a_malformed_behaviour_is_named(write: Write, line: Any, message: str) -> None:
    path = write(SHORT, "", line, LAST)
    with pytest.raises(TrainError, match=rf"^{re.escape(str(path))}:3: .*{re.escape(message)}"):
        load_behaviours(path)


def test_a_name_that_occurs_twice(write: Write) -> None:
    path = write(SHORT, LAST, {"name": "short", "system": "Be brief."})
    with pytest.raises(
        TrainError,
        match=r"own\.jsonl:3: there is another behaviour 'short' at .*own\.jsonl:1: expected a name",
    ):
        load_behaviours(path)


def test_a_family_on_both_sides(write: Write) -> None:
    path = write(SHORT, LAST | {"split": "held_out"})
    with pytest.raises(TrainError) as caught:
        load_behaviours(path)
    assert str(caught.value) == (
        f"""{path}:2: "split" is "held_out", but the family 'own' is "learn" at {path}:1: a family is on """
        """one side as a whole, so change "split", or name another "family\""""
    )


def test_behaviours_that_come_beside_others(write: Write) -> None:
    beside = (
        Behaviour("brief", "length", "Be brief."),
        Behaviour("we", "person", "Say we.", split="held_out"),
    )
    assert [one.name for one in load_behaviours(write(SHORT), beside=beside)] == ["short"]
    with pytest.raises(
        TrainError, match=r"own\.jsonl:1: there is another behaviour 'brief' among the behaviours beside it"
    ):
        load_behaviours(write(SHORT | {"name": "brief"}), beside=beside)
    with pytest.raises(
        TrainError, match=r"'person' is \"held_out\" among the behaviours beside it: a family is on one side"
    ):
        load_behaviours(write(SHORT | {"family": "person"}), beside=beside)


def test_a_users_file_fits_beside_the_shipped_one(write: Write) -> None:
    path = write({"name": "my-short", "system": "Be short."}, LAST)
    assert len(load_behaviours(path, beside=load_behaviours())) == 2


# Questions


def test_questions_of_a_file(write: Write) -> None:
    held_out = [{"question": f"Who is number {number}?", "split": "held_out"} for number in range(5)]
    path = write(*QUESTIONS, "", *held_out)
    assert len(load_questions(path)) == 9
    assert load_questions(path, split="learn") == ("Why?", "How?", "When?", "Where?")
    assert load_questions(str(path), split="held_out")[:2] == ("Who is number 0?", "Who is number 1?")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, 'there is no "question", expected one with text'),
        ({"question": ""}, '"question" is blank text, expected text'),
        ({"question": ["a"]}, '"question" is a list of 1, expected text'),
        ({"questoin": "a"}, "there is no key 'questoin': did you mean 'question'?"),
        ({"question": "a", "split": "test"}, "\"split\" is the string 'test', expected"),
        ({"question": " WHY?"}, "the question ' WHY?' is also at "),
    ],
)
def test_a_malformed_question_is_named(write: Write, line: Any, message: str) -> None:
    path = write(*QUESTIONS, line)
    with pytest.raises(TrainError, match=rf"^{re.escape(str(path))}:5: {re.escape(message)}"):
        load_questions(path)


def test_too_few_questions(write: Write) -> None:
    with pytest.raises(TrainError, match=r"own\.jsonl: 3 questions, expected at least 4"):
        load_questions(write(*QUESTIONS[:3]))
    with pytest.raises(
        TrainError, match=r'own\.jsonl: 0 questions with the split "held_out" among 4, expected at least 4'
    ):
        load_questions(write(*QUESTIONS), split="held_out")


# Files that are none


@pytest.mark.parametrize(
    ("load", "what"), [(load_behaviours, "the behaviours"), (load_questions, "the questions")]
)
def test_a_file_that_cannot_be_read(tmp_path: Path, load: Callable[..., Any], what: str) -> None:
    with pytest.raises(TrainError, match=rf"none\.jsonl: cannot read {what}: No such file or directory"):
        load(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(TrainError, match=r"empty\.jsonl: the file is empty, expected one JSON object a line"):
        load(tmp_path / "empty.jsonl")
