"""Every built-in reward: what earns it, what does not, and the cheap answers that its guard refuses."""

from __future__ import annotations

import pytest
from answers import LOOPS, NOTHING, RIVER, asked, said

from tinylora_edge.tasks import Sample, rewards
from tinylora_edge.tasks.guards import words

APPLES = asked("Tom has 3 apples and gets 4 more. How many apples does Tom have now?", "3 + 4 = 7\n#### 7")
LARGEST = asked("Is the largest of these numbers 12, 5, or 40?", "40")
DATE = asked("Write a date in the form Date: 2024-01-31, please.")
PICK = asked(
    "List: dog, lamp, ice cream, tree. What is the last word in the list?",
    "tree",
    others=("dog", "lamp", "ice cream"),
)
FOUR, WORD = rewards.max_words(4), rewards.regex(r"\bwater\b")
DATED = rewards.regex(r"Date: \d{4}-\d\d-\d\d")


@pytest.mark.parametrize(
    ("reward", "sample", "text"),
    [
        (rewards.number, APPLES, "3 + 4 = 7"),
        (rewards.number, APPLES, r"\boxed{7.00}"),
        (rewards.number, LARGEST, "The largest is 40."),
        (FOUR, RIVER, "Water flowing far downhill."),
        (WORD, RIVER, "Flowing water."),
        (DATED, DATE, "Date: 2031-12-07"),
        (rewards.picks_answer, PICK, 'The last word in the list is "Tree."'),
        (rewards.picks_answer, PICK, "It is tree, the tree."),
    ],
)
def test_what_earns_a_reward(reward: rewards.Reward, sample: Sample, text: str) -> None:
    assert reward(said(text), sample) == 1.0


@pytest.mark.parametrize(
    ("reward", "sample", "texts"),
    [
        (rewards.number, APPLES, ["", "8", "seven", "7 or 8", "#### 6\n#### 7", "#### 7 million"]),
        (rewards.number, LARGEST, [LARGEST.text, "numbers 12, 5, or 40"]),
        (FOUR, RIVER, ["Water flowing very far downhill.", "Water-flowing_very/far.downhill"]),
        (rewards.max_words(100), RIVER, [*NOTHING, *LOOPS]),
        (WORD, RIVER, ["Waterfalls."]),
        (rewards.regex(r"\S"), RIVER, [*NOTHING, *LOOPS]),
        (rewards.regex(r"z*"), RIVER, ["Flowing water."]),
        (DATED, DATE, [DATE.text, f"Okay. {DATE.text}"]),
        (rewards.picks_answer, PICK, ["", "lamp", "trees", "dog, lamp, ice cream, tree", "tree or lamp"]),
        (rewards.picks_answer, PICK, ["Ice cream and tree", "tree tree", "tree " * 5]),
    ],
)
def test_what_does_not(reward: rewards.Reward, sample: Sample, texts: list[str]) -> None:
    for text in texts:
        assert reward(said(text), sample) == 0.0, text


def test_what_the_limit_cut() -> None:
    assert rewards.number(said("3 + 4 = 7", ended=False), APPLES) == 0.0
    assert rewards.number(said("#### 7\nSo", ended=False), APPLES) == 1.0
    assert FOUR(said("Water flowing", ended=False), RIVER) == 0.0


@pytest.mark.parametrize("answer", [None, "none", "#### 5 or 6"])
def test_what_a_sample_has_to_have(answer: str | None) -> None:
    with pytest.raises(ValueError, match="needs a sample whose answer has a number"):
        rewards.number(said("7"), asked("?", answer))
    with pytest.raises(ValueError, match="answer and a list"):
        rewards.picks_answer(said("tree"), asked("?", answer, others="dog"))


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
    assert rewards.max_words(len(text.split()))(said(text), RIVER) == 1.0
    assert words("river\u200bbed\u3002\u5c71\u5ddd") == ["river", "bed", "\u5c71", "\u5ddd"]
