"""The general prompts that are shipped: how many, how varied, and that nobody trains on them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import chain
from pathlib import Path

import pytest

import tinylora_edge.tasks.general
from tinylora_edge import TrainError
from tinylora_edge.tasks import BUILTIN, Sample, load_task
from tinylora_edge.tasks.behaviours import load_behaviours, load_questions
from tinylora_edge.tasks.general import checkable, is_right, load_general

FILE = Path(tinylora_edge.tasks.general.__file__).with_name("general.jsonl")
HELD_OUT, TRAIN = load_general(), load_general(split="train")
ALL = HELD_OUT + TRAIN
ALIKE = 0.95  # by difflib: two questions that differ in one long word are not
KINDS = "advice arithmetic code explanation fact list poem rewriting small-talk translation word writing"


def normalized(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.casefold()))


def asked_by_behaviours() -> Iterator[str]:
    yield from load_questions()
    for behaviour in load_behaviours():
        yield from chain(behaviour.questions, (question for question, _ in behaviour.examples))


def test_there_are_enough_of_every_kind() -> None:
    assert len(HELD_OUT) >= 200
    for side, fewest in ((HELD_OUT, 10), (TRAIN, 2)):
        kinds = Counter(sample.data["kind"] for sample in side)
        assert sorted(kinds) == KINDS.split()
        assert min(kinds.values()) >= fewest
        assert max(kinds.values()) <= len(side) / 4


def test_many_can_be_checked() -> None:
    assert sum(bool(checkable(sample)) for sample in HELD_OUT) >= 80


def test_the_first_ones_are_varied() -> None:
    for side, count in ((HELD_OUT, 32), (TRAIN, 8)):
        assert len({sample.data["kind"] for sample in side[:count]}) >= min(count - 1, len(KINDS.split()))
    assert sum(bool(checkable(sample)) for sample in HELD_OUT[:32]) >= 10


def test_no_prompt_gives_its_answer_away() -> None:
    """But for those that ask to choose: a base that repeats a question would else be right."""
    given = [s.text for s in ALL if is_right(s.text, checkable(s))]
    assert all(s.startswith(("Which word is", "Which city is named")) for s in given), given


def test_answers_that_are_sums_are_right() -> None:
    found = 0
    for sample in ALL:
        if match := re.fullmatch(r"What is (\d+) ([-+x/]) (\d+)\?", sample.text):
            left, sign, right = match.groups()
            values = {"+": int(left) + int(right), "-": int(left) - int(right), "x": int(left) * int(right)}
            assert checkable(sample)[0] == str({**values, "/": int(left) // int(right)}[sign])
            found += 1
    assert found >= 15


# Nobody trains on them


def test_no_two_are_the_same() -> None:
    assert len({normalized(sample.text) for sample in ALL}) == len(ALL)


def test_none_is_a_question_of_a_behaviour() -> None:
    asked = list(map(normalized, asked_by_behaviours()))
    for sample in ALL:
        one = normalized(sample.text)
        for other in asked:
            pair = SequenceMatcher(None, one, other)
            alike = pair.real_quick_ratio() > ALIKE and pair.quick_ratio() > ALIKE and pair.ratio() > ALIKE
            assert not alike, (sample.text, other)


@pytest.mark.parametrize("name", [name for name in BUILTIN if name != "gsm8k"])
def test_none_is_a_prompt_of_a_task(name: str) -> None:
    task = load_task(name)
    prompts = {normalized(sample.text) for sample in (*task.train, *task.held_out, *task.shifted)}
    assert not prompts & {normalized(sample.text) for sample in ALL}


# The file


def test_the_file_is_plain_lines_of_utf8() -> None:
    content = FILE.read_bytes().decode("utf-8")
    assert content.endswith("}\n")
    assert not re.search(r"\r|\n\n|\\u", content)
    assert all(s.text == " ".join(s.text.split()) and len(s.text.split()) <= 40 for s in ALL)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "What is 1 + 1?", "answer": 2, "split": "held_out"}) + "\n")
    (sample,) = load_general(path)
    assert isinstance(sample, Sample)
    assert checkable(sample) == ("2",)
    with pytest.raises(TrainError, match='no prompt has the split "train"'):
        load_general(path, split="train")


@pytest.mark.parametrize("answers", ["12", [], [" "], [12], None])
def test_answers_that_are_none(answers: object, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "What is 7 + 5?", "answers": answers}) + "\n")
    with pytest.raises(TrainError, match=r'own.jsonl:1: "answers" is'):
        load_general(path)


def test_shifted_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Hello?", "split": "shifted"}\n')
    with pytest.raises(
        TrainError, match=r'own.jsonl:1: "split" is "shifted", expected "train" or "held_out"'
    ):
        load_general(path)
