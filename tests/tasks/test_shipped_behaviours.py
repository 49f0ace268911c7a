"""The shipped behaviours and questions: how many, how long, and that nothing measured on is learned from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from difflib import SequenceMatcher
from itertools import chain
from pathlib import Path

import pytest

import tinylora_edge.tasks.behaviours
from tinylora_edge.tasks import BUILTIN
from tinylora_edge.tasks.behaviours import Behaviour, load_behaviours, load_questions
from tinylora_edge.tasks.generated import words as lists

FOLDER = Path(tinylora_edge.tasks.behaviours.__file__).parent
ALL = load_behaviours()
LEARN, HELD_OUT = load_behaviours(split="learn"), load_behaviours(split="held_out")
QUESTIONS = {split: load_questions(split=split) for split in ("learn", "held_out")}

FRAMES = """
    a about advice an and any are better can cause come compare describe do doe explain feel few for from get
    give good happen have how i idea in invented is list live make many me most my new of recommend see
    sentence short should some something stay story suggest tell the thing three tip to us use was we wear
    what when where which who why with work write
"""
"""Words that a question is asked with, not about."""
KINDS = "What Who Where When Which Why How Describe Explain Compare List Tell Write Give Suggest Is Can I"
ALIKE = 0.75  # of two normalized prompts, by difflib: "Answer in French." and "Answer in Spanish." have 0.73


def normalized(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.casefold()))


def singulars(texts: Iterable[str]) -> set[str]:
    """Words of texts, a plural as its singular: enough to compare the words of two lists."""
    words = set(chain.from_iterable(normalized(text).split() for text in texts))
    return {word[:-1] if word.endswith("s") and len(word) > 3 else word for word in words}


def asked(behaviours: Iterable[Behaviour]) -> set[str]:
    """Every question that behaviours bring, also those of their examples."""
    return {
        normalized(question)
        for one in behaviours
        for question in (*one.questions, *(asked for asked, _ in one.examples))
    }


def texts(behaviour: Behaviour) -> Iterator[str]:
    if behaviour.system is not None:
        yield behaviour.system
    yield from chain.from_iterable(behaviour.examples)
    yield from behaviour.questions


def examples_of(name: str) -> tuple[tuple[str, str], ...]:
    (found,) = (one for one in ALL if one.name == name)
    return found.examples


# Numbers


def test_there_are_enough_behaviours_of_many_families() -> None:
    assert len(ALL) == len(LEARN) + len(HELD_OUT) >= 120
    assert len(LEARN) >= 100
    assert len(HELD_OUT) >= 20
    families = Counter(one.family for one in ALL)
    assert len(families) >= 20
    assert min(families.values()) >= 5, "a family of few says little about families"
    assert max(families.values()) <= 10, "no family outweighs the others"
    assert "own" not in families, "that is what a user's behaviours are in"


def test_no_family_is_on_both_sides() -> None:
    learned, held_out = ({one.family for one in side} for side in (LEARN, HELD_OUT))
    assert not learned & held_out
    assert len(held_out) == 3


def test_there_are_system_prompts_and_worked_examples_to_learn_from() -> None:
    assert sum(one.system is not None for one in LEARN) >= len(LEARN) // 3
    assert sum(bool(one.examples) for one in LEARN) >= len(LEARN) // 5
    assert all(one.system is not None for one in HELD_OUT)
    assert any(one.system is not None and one.examples for one in LEARN)


def test_there_are_enough_questions() -> None:
    assert sum(map(len, QUESTIONS.values())) >= 200
    assert len(QUESTIONS["held_out"]) >= 50


def test_questions_are_of_every_kind() -> None:
    for questions in QUESTIONS.values():
        first = {question.split()[0] for question in questions}
        assert set(KINDS.split()) <= first


# Shapes


@pytest.mark.parametrize("behaviour", ALL, ids=lambda one: one.name)
def test_a_teacher_is_short_and_consistent(behaviour: Behaviour) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", behaviour.name)
    assert len((behaviour.system or "").split()) <= 15
    assert len(behaviour.examples) in (0, 2, 3, 4)
    assert sum(len(text.split()) for pair in behaviour.examples for text in pair) <= 80
    assert len(behaviour.questions) == 0 or len(behaviour.questions) >= 12
    assert all(len(question.split()) <= 20 for question in behaviour.questions)
    assert all(text.isascii() and text == text.strip() for text in texts(behaviour))


@pytest.mark.parametrize("file", ["behaviours.jsonl", "questions.jsonl"])
def test_files_are_plain_lines_of_utf8(file: str) -> None:
    content = (FOLDER / file).read_bytes().decode("utf-8")
    assert content.endswith("}\n")
    assert not re.search(r"\r|\n\n|\\u", content)


def test_questions_are_short() -> None:
    for question in chain.from_iterable(QUESTIONS.values()):
        assert len(question.split()) <= 20
        assert question.isascii()
        assert question == " ".join(question.split())
        assert question[-1] in ".?"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("last-of-a-list", lambda words: words[-1]),
        ("first-of-a-list", lambda words: words[0]),
        ("second-of-a-list", lambda words: words[1]),
        ("longest-of-a-list", lambda words: max(words, key=len)),
        ("reversed-list", lambda words: ", ".join(reversed(words))),
        ("sorted-list", lambda words: ", ".join(sorted(words))),
        ("list-with-and", lambda words: f"{', '.join(words[:-1])} and {words[-1]}"),
        ("length-of-a-list", lambda words: str(len(words))),
    ],
)
def test_worked_examples_of_lists_are_right(name: str, answer: Callable[[list[str]], str]) -> None:
    for question, said in examples_of(name):
        assert answer(question.split(", ")) == said, question
    if name == "longest-of-a-list":
        assert len({pair[0].split(", ").index(pair[1]) for pair in examples_of(name)}) == 3, "it is no place"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("sum-in-digits", lambda first, second: first + second),
        ("sum-in-a-sentence", lambda first, second: first + second),
        ("difference", lambda first, second: first - second),
        ("larger-number", max),
        ("next-number", lambda number: number + 1),
        ("double", lambda number: 2 * number),
    ],
)
def test_worked_examples_of_sums_are_right(name: str, answer: Callable[..., int]) -> None:
    for question, said in examples_of(name):
        assert answer(*map(int, re.findall(r"\d+", question))) == int(*re.findall(r"\d+", said)), question


# Nothing twice


def test_no_two_teachers_are_the_same() -> None:
    teachers = Counter((normalized(one.system or ""), one.examples) for one in ALL)
    assert [teacher for teacher, count in teachers.items() if count > 1] == []


def test_no_held_out_prompt_is_nearly_one_that_is_learned() -> None:
    alike = [
        (one.system, other.system)
        for one in HELD_OUT
        for other in LEARN
        if one.system is not None
        and other.system is not None
        and SequenceMatcher(None, normalized(one.system), normalized(other.system)).ratio() > ALIKE
    ]
    assert alike == []


def test_no_question_is_on_both_sides() -> None:
    learn = asked(LEARN) | set(map(normalized, QUESTIONS["learn"]))
    held_out = asked(HELD_OUT) | set(map(normalized, QUESTIONS["held_out"]))
    assert learn & held_out == set()


def test_no_behaviour_answers_a_general_question() -> None:
    general = set(map(normalized, chain.from_iterable(QUESTIONS.values())))
    assert asked(ALL) & general == set()


def test_general_questions_share_no_nouns() -> None:
    shared = singulars(QUESTIONS["learn"]) & singulars(QUESTIONS["held_out"])
    assert shared - set(FRAMES.split()) == set()
    assert shared >= set(FRAMES.split()), "a word that only one side has needs no exception"


# Tasks that are measured on


def test_what_is_near_a_task_says_so() -> None:
    assert {task for one in ALL for task in one.near} <= set(BUILTIN)
    near = {
        family: {one.near for one in ALL if one.family == family}
        for family in ("lists", "sums", "data formats")
    }
    assert near == {"lists": {("list-lookup",)}, "sums": {("word-sums",)}, "data formats": {("formats",)}}
    marked = {one.name: one.near for one in LEARN if one.near}
    assert marked["one-sentence"] == ("brevity", "formats")
    assert marked["bullets"] == marked["capitals"] == marked["answer-prefix"] == ("formats",)


def test_enough_to_learn_from_is_near_no_task() -> None:
    assert sum(not one.near for one in LEARN) >= 100
    assert not any(one.near for one in HELD_OUT)


def test_no_word_that_tasks_hold_out_is_learned_from() -> None:
    side = lists.HELD_OUT
    words = {word.casefold() for word in (*side.nouns, *side.short, *side.names)}
    held_out = words | {lists.plural(word) for word in words}
    for behaviour in ALL:
        for text in texts(behaviour):
            assert not set(normalized(text).split()) & held_out, (behaviour.name, text)
    for question in QUESTIONS["learn"]:
        assert not set(normalized(question).split()) & held_out, question
