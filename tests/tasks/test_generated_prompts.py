"""The tasks that need no download: what they ask, disjoint words, the same prompts everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks import Sample, Task, load_task
from tinylora_edge.tasks.behaviours import load_behaviours, load_questions
from tinylora_edge.tasks.generated import TASKS
from tinylora_edge.tasks.generated import words as lists
from tinylora_edge.tasks.guards import words

NAMES = list(TASKS)
SIDES = (lists.TRAIN, lists.HELD_OUT, lists.SHIFTED)
# Of train (seeds 0 and 1) and 256 held-out samples. Published figures are of these very prompts.
DIGESTS = {
    "brevity": ("5511e97f11667ca6", "6acba9d0d1a664d1", "e113b621759ec2a6"),
    "list-lookup": ("ecb21dd2dcc32aa4", "78e264da30de1774", "7ce884604c83f0dd"),
    "plain-brevity": ("35fb7e8aceb6043f", "c2beaa20079832f8", "66e1cc276bd16127"),
    "word-sums": ("54dff9fe24f91011", "637d1171185c2443", "671dcb1a00b017c1"),
}


def nouns_of(side: lists.Words) -> set[str]:
    singular = {*side.things, *side.nouns, *side.short}
    return singular | {lists.plural(noun) for noun in singular} | {name.casefold() for name in side.names}


def words_of(samples: Iterable[Sample]) -> set[str]:
    return {word for sample in samples for word in words(sample.text)}


def digest(samples: Iterable[Sample]) -> str:
    rows = [[list(sample.prompt), sample.answer, dict(sample.data), sample.raw] for sample in samples]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


# The words


def test_the_splits_share_no_word() -> None:
    assert not nouns_of(lists.TRAIN) & nouns_of(lists.HELD_OUT)
    assert not nouns_of(lists.SHIFTED) & (nouns_of(lists.TRAIN) | nouns_of(lists.HELD_OUT))


def test_shifted_words_are_learned_from_nowhere() -> None:
    asked = {question for one in load_behaviours() for question in one.questions} | set(
        load_questions(split="learn")
    )
    assert not {word for question in asked for word in words(question)} & nouns_of(lists.SHIFTED)


# The prompts


@pytest.mark.parametrize("name", NAMES)
def test_sizes(tasks: dict[str, Task], name: str) -> None:
    task = tasks[name]
    assert (task.name, len(task.train), len(task.held_out), len(task.shifted)) == (name, 512, 128, 128)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_word_of_a_split_occurs_in_another(name: str, seed: int) -> None:
    """Words of the templates occur in all of them, so none may be a noun: rewards would judge it."""
    task = load_task(name, seed=seed, held_out=256)
    splits = [words_of(split) for split in (task.train, task.held_out, task.shifted)]
    for split, own in zip(splits, SIDES, strict=True):
        for other in SIDES:
            assert own is other or not split & nouns_of(other)
        assert len(split & nouns_of(own)) > 30


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_distinct_single_user_messages(tasks: dict[str, Task], name: str) -> None:
    samples = [*tasks[name].train, *tasks[name].held_out, *tasks[name].shifted]
    assert len({sample.text for sample in samples}) == len(samples)
    assert all([message["role"] for message in sample.prompt] == ["user"] for sample in samples)


@pytest.mark.parametrize("name", DIGESTS)
def test_the_prompts_are_those_that_were_measured(name: str) -> None:
    first, second = (load_task(name, seed=seed, held_out=256) for seed in (0, 1))
    assert (digest(first.train), digest(second.train), digest(first.held_out)) == DIGESTS[name]


@pytest.mark.parametrize(("name", "limit"), [("brevity", 104 * 5)])
def test_more_prompts_than_the_words_give_are_refused(name: str, limit: int) -> None:
    assert len(load_task(name, held_out=limit - 50).held_out) == limit - 50
    with pytest.raises(
        TrainError, match=rf"{name}: the word lists give about \d+ different prompts on the held_out side"
    ):
        load_task(name, held_out=limit + 1)
