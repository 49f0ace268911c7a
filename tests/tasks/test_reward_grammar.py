"""Rewards as text: what parses to what, and errors that say where and what was expected."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from answers import asked, said
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import TrainError
from tinylora_edge.tasks.rewards import FACTORIES, REWARDS, parse_reward

RIVER = asked("What is a river?", "7")
SHORT = said("Flowing water.")
LONG = said("Water that flows downhill towards some distant sea, through valleys and past many towns.")
CUT = said("Flowing water and", ended=False)


@pytest.mark.parametrize(
    ("text", "short", "long", "cut"),
    [
        ("ends_itself", 1.0, 1.0, 0.0),
        ("max_words(12)", 1.0, 0.0, 0.0),
        ("0.5*max_words(12)+0.5*ends_itself", 1.0, 0.5, 0.0),
        ("0.5 * max_words(12) + .25*ends_itself", 0.75, 0.25, 0.0),
        ("ends_itself - 0.75*max_words(12)", 0.25, 1.0, 0.0),
        ("-ends_itself", -1.0, -1.0, 0.0),
        ("max_words(12)*regex('water')", 1.0, 0.0, 0.0),
        ("regex('(?i)water') * (0.25*max_words(12) + 0.75*ends_itself)", 1.0, 0.75, 0.0),
        (r'regex("\bwater\b")', 1.0, 0.0, 1.0),
        (r'regex("^\w+ \w+\.$")', 1.0, 0.0, 0.0),
        (r"""regex("\"|water")""", 1.0, 0.0, 1.0),
        ("ends_itself - (max_words(12) + ends_itself)", -1.0, 0.0, 0.0),
        ('json_schema({"type": "object", "description": "a ) and a + in here"})', 0.0, 0.0, 0.0),
    ],
)
def test_what_an_expression_means(text: str, short: float, long: float, cut: float) -> None:
    reward = parse_reward(text)
    assert [reward(answer, RIVER) for answer in (SHORT, LONG, CUT)] == pytest.approx([short, long, cut])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "reward "),
        ("0.5", "only the number 0.5"),
        ("0.5 + ends_itself", "expected a reward in each term"),
        ("max_words", "takes one argument"),
        ("max_words(n=1)", "'max_words(n=1)' is no reward"),
        ("max_words(0)", "number of words, 1 or more, not 0"),
        ("max_words(x)", "the argument 'x' is no whole number, string in quotes or JSON"),
        ("ends_itself(3)", "takes no argument"),
        ("regex('(')", "not a regular expression"),
        ('json_schema({"type": 5})', "not a valid JSON Schema"),
        ("regex('a{99999999999999}')", "the repetition number is too large"),
        ("regex('" + "(" * 3000 + ")" * 3000 + "')", "not a regular expression: maximum recursion depth"),
        ("max_words(" + "1" * 4000 + ")", "is no whole number"),
        ("0*ends_itself", "finite weight other than 0"),
        ("[ends_itself for a in b]", "is no reward"),
        ("(" * 5000 + "ends_itself" + ")" * 5000, "it is longer than 10000 characters"),
        ("(" * 500 + "ends_itself" + ")" * 500, "nested"),
    ],
)
def test_an_error_says_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(TrainError, match=re.escape(message)):
        parse_reward(text)


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(TrainError, match="there is no reward 'politeness'") as caught:
        parse_reward("ends_itself + politeness")
    assert all(name in str(caught.value) for name in [*REWARDS, *FACTORIES, "module:function"])


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
    mixed = parse_reward("0.5*my_rewards_module:polite + 0.1*my_rewards_module:Holder.length")
    assert mixed(said("please"), RIVER) == pytest.approx(0.5 + 0.6)
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


@given(st.text(max_size=40) | st.text("()+-*.5 :'\"{}[]axmords_w", max_size=40))
def test_any_text_is_a_reward_or_a_train_error(text: str) -> None:
    with suppress(TrainError):  # and no other error
        assert callable(parse_reward(text, allow_import=False))
