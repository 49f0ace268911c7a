"""Rewards and their names: what earns one, the cheap answers that guards refuse, and what is none."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from answers import LOOPS, NOTHING, RIVER, completed, question

from tinylora_edge import TrainError
from tinylora_edge.tasks import Completion, Reward, Sample, Task, rewards
from tinylora_edge.tasks.rewards import REWARDS, parse_reward, words

APPLES = question("Tom has 3 apples and gets 4 more. How many has Tom now?", "3 + 4 = 7\n#### 7")
LARGEST = question("Is the largest of these numbers 12, 5, or 40?", "40")
DATE = question("Write a date in the form Date: 2024-01-31, please.")
PICK = question(
    "List: dog, lamp, ice cream, tree. What is the last word in the list?",
    "tree",
    others=("dog", "lamp", "ice cream"),
)
WIND = question("List: window, wind. What is the last word?", "wind", others=("window",))
SECOND = question("List: a1, b, c. Second?", "b", others=("a1", "c"))
FOUR, WORD = " max_words( 4 ) ", r'regex("\bwater\b")'
DATED = r"regex('Date: \d{4}-\d\d-\d\d')"


@pytest.mark.parametrize(
    ("reward", "sample", "text"),
    [
        ("number", APPLES, "3 + 4 is 7, so the answer is 7."),
        ("number", APPLES, r"\boxed{7.00}"),
        ("number", LARGEST, "40."),
        (FOUR, RIVER, "Water flowing far downhill."),
        (WORD, RIVER, "Flowing water."),
        (r"""regex("\"|Flow")""", RIVER, "Flowing water."),
        ("regex('(?i)WATER')", RIVER, "Flowing water."),
        (DATED, DATE, "Date: 2031-12-07"),
        ("picks_answer", PICK, 'The last word in the list is "Tree."'),
        ("picks_answer", PICK, "It is tree, the tree."),
        ("picks_answer", PICK, "It is tr\u00adee; nice."),
        ("picks_answer", WIND, "The wind."),
        ("picks_answer", SECOND, "A word that I would pick: b."),
    ],
)
def test_what_earns_a_reward(reward: str, sample: Sample, text: str) -> None:
    assert parse_reward(reward)(completed(text), sample) == 1.0


@pytest.mark.parametrize(
    ("reward", "sample", "texts"),
    [
        ("number", APPLES, ["", "8", "seven", "7 or 8", "#### 6\n#### 7", "#### 7 million"]),
        ("number", APPLES, ["#### 7\nNo, wait: the answer is 8", r"\boxed{7} or 8", "#### 7\n8"]),
        ("number", APPLES, ["A: 5 B: 6 C: 7", "A is 5, B is 6, C is 7", "Tom: 3\nA: 6, B: 7."]),
        ("number", LARGEST, [LARGEST.text, "numbers 12, 5, or 40", "The largest is 40."]),
        (FOUR, RIVER, ["Water flowing very far downhill.", "Water-flowing_very/far.downhill"]),
        ("max_words(100)", RIVER, [*NOTHING, *LOOPS]),
        (WORD, RIVER, ["Waterfalls."]),
        (r"regex('\S')", RIVER, [*NOTHING, *LOOPS]),
        ("regex('z*')", RIVER, ["Flowing water."]),
        (DATED, DATE, [DATE.text, f"Okay. {DATE.text}"]),
        ("picks_answer", PICK, ["", "lamp", "trees", "dog, lamp, ice cream, tree", "tree or lamp"]),
        ("picks_answer", PICK, ["Ice cream and tree", "tree tree", "tree " * 5]),
        ("picks_answer", PICK, ["tree, not dogs", "tree or dog's", "tree, lampshade", "tree, ice-creams"]),
        ("picks_answer", PICK, [f"tree or d{char}og" for char in "\u00ad\u200b\u200d\u2060\u034f\ufe0f"]),
        ("picks_answer", PICK, ["tree or \uff44\uff4f\uff47", "tree or DOG", "dog's tree"]),
        ("picks_answer", SECOND, ["b or c", "c"]),
    ],
)
def test_what_does_not(reward: str, sample: Sample, texts: list[str]) -> None:
    for text in texts:
        assert parse_reward(reward)(completed(text), sample) == 0.0, text


def test_what_the_limit_cut() -> None:
    assert rewards.number(completed("7", ended=False), APPLES) == 0.0
    assert parse_reward(FOUR)(completed("Water flowing", ended=False), RIVER) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "\u0928\u0926\u0940 \u092c\u0939\u0924\u0940 \u0939\u0941\u0908",  # vowel signs of Hindi
        "nai\u0308ve so\u0301lo",  # accents that stand alone
        "\u0645\u06cc\u200c\u0631\u0648\u062f",  # a joiner inside a Persian word
        "co\u00adoperation can't",
    ],
)
def test_a_word_keeps_its_marks(text: str) -> None:
    assert words(text) == text.split()
    assert words("river\u200bbed\u3002\u5c71\u5ddd") == ["river", "bed", "\u5c71", "\u5ddd"]


def test_an_expression_that_takes_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "_SEARCH_S", 0.5)
    with pytest.raises(TrainError, match=r"regex: '\(a\+\)\+\$' takes more than 0.5 s: write it without"):
        parse_reward('regex("(a+)+$")')(completed(f"{'a' * 60}!"), RIVER)


@pytest.mark.parametrize("text", ["", "0.5", "max_words", "max_words(x)", "label(3)", "regex(x)", "(label)"])
def test_an_error_lists_what_exists(text: str) -> None:
    with pytest.raises(TrainError, match="there is no reward") as caught:
        parse_reward(text)
    assert all(name in str(caught.value) for name in [*REWARDS, "max_words", "regex", "module:function"])


@pytest.fixture
def my_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_rewards_module.py").write_text(
        "def polite(completion, sample):\n    return float('please' in completion.text)\n"
        "class Holder:\n    length = staticmethod(lambda completion, sample: len(completion.text))\n"
        "number = 5\n"
    )
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('out of paper')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("my_rewards_module", "broken_module"):
        sys.modules.pop(name, None)


def test_a_python_callable_is_a_reward(my_rewards: Path) -> None:
    reward = parse_reward("my_rewards_module:polite")
    assert [reward(completed(text), RIVER) for text in ("please", "now")] == [1.0, 0.0]
    assert parse_reward("my_rewards_module:Holder.length")(completed("please"), RIVER) == 6
    assert str(my_rewards) not in sys.path
    sys.path.insert(0, str(my_rewards))
    parse_reward("my_rewards_module:polite")
    assert sys.path[0] == str(my_rewards)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_words(0)", "number of words, 1 or more, not 0"),
        ("regex('(')", "'(' is not a regular expression: missing )"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("my_rewards_module:nothing", "has no attribute 'nothing'"),
        ("my_rewards_module:number", "is a int, expected a callable"),
        ("broken_module:f", "RuntimeError: out of paper"),
    ],
)
def test_a_reward_that_cannot_be_had(my_rewards: Path, text: str, message: str) -> None:
    with pytest.raises(TrainError, match=re.escape(message)):
        parse_reward(text)


# `Task.score`: nothing that a reward does wrong passes silently


TRAIN = (question("What is a river?"), question("What is a hill?"))
HELD_OUT = (question("What is a lake?"),)


def task(reward: Reward) -> Task:
    return Task("mine", TRAIN, HELD_OUT, reward)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, 1.0), (0, 0.0), (-2, -2.0), (np.float32(0.5), 0.5), (np.int64(3), 3.0), (Fraction(1, 4), 0.25)],
)
def test_real_numbers_pass(value: float, expected: float) -> None:
    score = task(lambda completion, sample: value).score(completed("x"), TRAIN[0])
    assert score == expected
    assert type(score) is float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"nan \(float\), expected a finite real number"),
        (10**400, "OverflowError: int too large"),
        (True, r"True \(bool\), expected a finite real number"),
        (np.bool_(True), r"\(bool\w*\), expected a finite real number"),
        (None, r"None \(NoneType\)"),
        ("1.0", r"'1.0' \(str\)"),
        (np.ones(1), r"\(ndarray\)"),
    ],
)
def test_everything_else_is_refused_with_its_sample(value: object, message: str) -> None:
    with pytest.raises(TrainError, match=message) as caught:
        task(lambda completion, sample: value).score(completed("a stream"), TRAIN[1])  # type: ignore[arg-type,return-value]
    assert all(part in str(caught.value) for part in ("task mine", "What is a hill?", "a stream"))


def test_an_exception_is_reported_with_its_sample_and_kept_as_the_cause() -> None:
    def reward(completion: Completion, sample: Sample) -> float:
        return 1 / len(completion.text)

    with pytest.raises(TrainError, match=r"task mine .*ZeroDivisionError: division by zero") as caught:
        task(reward).score(completed(""), HELD_OUT[0])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
