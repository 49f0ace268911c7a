"""Rewards by their names: what each means, and errors that say what was expected."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from answers import asked, said
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import MissingExtraError, TrainError
from tinylora_edge.tasks.rewards import REWARDS, parse_reward

RIVER = asked("What is a river?", "7")
SHORT = said("Flowing water.")
LONG = said("Water that flows downhill towards some distant sea, through valleys and past many towns.")
CUT = said("Flowing water and", ended=False)


@pytest.mark.parametrize(
    ("text", "short", "long", "cut"),
    [
        (" max_words( 12 ) ", 1.0, 0.0, 0.0),
        (r'regex("\bwater\b")', 1.0, 0.0, 1.0),
        (r'regex("^\w+ \w+\.$")', 1.0, 0.0, 0.0),
        (r"""regex("\"|water")""", 1.0, 0.0, 1.0),
        ("regex('(?i)WATER')", 1.0, 1.0, 1.0),
    ],
)
def test_what_a_name_means(text: str, short: float, long: float, cut: float) -> None:
    reward = parse_reward(text)
    assert [reward(answer, RIVER) for answer in (SHORT, LONG, CUT)] == [short, long, cut]
    assert all(parse_reward(name) is known for name, known in REWARDS.items())


NONE = [
    "",
    "0.5",
    "politeness",
    "max_words",
    "max_words(x)",
    f"max_words({'1' * 4000})",
    "label(3)",
    "regex(x)",
]
SUMS = ["0.5*max_words(12)+0.5*label", f"{'1' * 400}*label", "max_words(12)*label", "-label", "(label)"]


@pytest.mark.parametrize("text", [*NONE, *SUMS])
def test_one_reward_is_named_and_an_error_lists_what_exists(text: str) -> None:
    with pytest.raises(TrainError, match="there is no reward") as caught:
        parse_reward(text)
    assert all(name in str(caught.value) for name in [*REWARDS, "max_words", "regex", "module:function"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_words(0)", "number of words, 1 or more, not 0"),
        ("regex('(')", "not a regular expression of RE2: missing )"),
        (r"regex('(a)\1')", r"not a regular expression of RE2: invalid escape sequence: \1"),
        ("regex('(?=a)')", "not a regular expression of RE2"),
        ("regex('\udcff')", "not a regular expression of RE2"),
    ],
)
def test_an_argument_that_is_none(text: str, message: str) -> None:
    with pytest.raises(TrainError, match=re.escape(message)):
        parse_reward(text)


def test_a_pattern_takes_no_time_to_fail() -> None:
    answer = said("water " + "a" * 100_000)  # a backtracking engine is not back in this century
    assert [
        parse_reward(f"regex('{pattern}')")(answer, RIVER) for pattern in ("(.|.|.)*Z9{9}", "(a+)+$")
    ] == [0, 1]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(MissingExtraError, match=r"regex reward needs .* google-re2.*\[train\]"):
        parse_reward("regex('a')")


# module:function


@pytest.fixture
def my_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_rewards_module.py").write_text(
        "def polite(completion, sample):\n"
        "    return float('please' in completion.text)\n"
        "class Holder:\n"
        "    @staticmethod\n"
        "    def length(completion, sample):\n"
        "        return len(completion.text)\n"
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
    assert [reward(said(text), RIVER) for text in ("please", "now")] == [1.0, 0.0]
    assert parse_reward("my_rewards_module:Holder.length")(said("please"), RIVER) == 6
    assert str(my_rewards) not in sys.path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_module:f", "ModuleNotFoundError"),
        ("my_rewards_module:nothing", "has no 'nothing'"),
        ("my_rewards_module:number", "is a int, expected a callable"),
        ("broken_module:f", "RuntimeError: out of paper"),
    ],
)
def test_a_callable_that_cannot_be_had_is_reported(my_rewards: Path, text: str, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        parse_reward(text)


def test_files_of_samples_may_not_name_code(my_rewards: Path) -> None:
    with pytest.raises(TrainError, match="is code, and a file of samples may not name any"):
        parse_reward("my_rewards_module:polite", allow_import=False)
    assert "my_rewards_module" not in sys.modules


# Anything


@given(st.text(max_size=40) | st.text("():'\"regexmax_words[9", max_size=40))
def test_any_text_is_a_reward_or_a_train_error(text: str) -> None:
    with suppress(TrainError):  # and no other error
        assert callable(parse_reward(text, allow_import=False))
