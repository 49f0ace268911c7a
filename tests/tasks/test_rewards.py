"""Every built-in reward: what earns it, what does not, and the cheap answers that its guard refuses."""

from __future__ import annotations

import pytest
from answers import LOOPS, NOTHING, RIVER, asked, said
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import TrainError
from tinylora_edge.tasks import rewards

TEXTS = st.text(max_size=80) | st.lists(
    st.sampled_from(["a", "river", "is", "what", "water", "few", "the", "Big", "7", "cat", ".", "{}"]),
    max_size=30,
).map(" ".join)


# exact_number


APPLES = asked("Tom has 3 apples and gets 4 more. How many apples does Tom have now?", "3 + 4 = 7\n#### 7")


@pytest.mark.parametrize("text", ["7", "#### 7", r"\boxed{7}", "He has 7 apples.", "7.00", "$7", "3 + 4 = 7"])
def test_exact_number_takes_every_notation(text: str) -> None:
    assert rewards.exact_number(said(text), APPLES) == 1.0


@pytest.mark.parametrize("text", ["", "8", "-7", "seven", "77", "7 or 8", "7.5"])
def test_exact_number_refuses_other_numbers(text: str) -> None:
    assert rewards.exact_number(said(text), APPLES) == 0.0


@pytest.mark.parametrize("text", ["#### 6\n#### 7", "#### 6 or 7", r"\boxed{6}\boxed{7}", r"\boxed{6, 7}"])
def test_exact_number_refuses_to_be_hedged(text: str) -> None:
    assert rewards.exact_number(said(text), APPLES) == 0.0


def test_exact_number_does_not_count_a_number_at_the_cut() -> None:
    assert rewards.exact_number(said("3 + 4 = 7", ended=False), APPLES) == 0.0
    assert rewards.exact_number(said("3 + 4 = 7 apples", ended=False), APPLES) == 1.0


def test_exact_number_is_not_won_by_saying_the_prompt_back() -> None:
    sample = asked("Is the largest of these numbers 12, 5, or 40?", "40")
    assert rewards.exact_number(said("Is the largest of these numbers 12, 5, or 40?"), sample) == 0.0
    assert rewards.exact_number(said("numbers 12, 5, or 40"), sample) == 0.0
    assert rewards.exact_number(said("40"), sample) == 1.0
    assert rewards.exact_number(said("The largest is 40."), sample) == 1.0


@pytest.mark.parametrize("answer", [None, "", "none", "#### 5 or 6"])
def test_exact_number_needs_a_reference(answer: str | None) -> None:
    with pytest.raises(ValueError, match="needs a sample whose answer has a number"):
        rewards.exact_number(said("7"), asked("?", answer))


# max_words, ends_itself


def test_max_words_counts_words() -> None:
    reward = rewards.max_words(4)
    assert reward(said("Water flowing downhill."), RIVER) == 1.0
    assert reward(said("Water flowing far downhill."), RIVER) == 1.0
    assert reward(said("Water flowing very far downhill."), RIVER) == 0.0
    assert reward(said("Water-flowing_very/far.downhill"), RIVER) == 0.0


def test_max_words_refuses_an_answer_that_the_limit_made_short() -> None:
    assert rewards.max_words(4)(said("Water flowing", ended=False), RIVER) == 0.0


@pytest.mark.parametrize("text", [*NOTHING, *LOOPS])
def test_max_words_and_ends_itself_refuse_cheap_answers(text: str) -> None:
    assert rewards.max_words(100)(said(text), RIVER) == 0.0
    assert rewards.ends_itself(said(text), RIVER) == 0.0


@pytest.mark.parametrize("n", [0, -1, 2.5, "12", True, None])
def test_max_words_needs_a_number_of_words(n: object) -> None:
    with pytest.raises(TrainError, match="number of words"):
        rewards.max_words(n)  # type: ignore[arg-type]


def test_ends_itself_is_about_the_end() -> None:
    long = "Water that flows downhill from mountains towards some distant sea, through valleys and towns."
    assert rewards.ends_itself(said(long), RIVER) == 1.0
    assert rewards.ends_itself(said(long, ended=False), RIVER) == 0.0


# regex


def test_regex_searches() -> None:
    assert rewards.regex(r"\bwater\b")(said("Flowing water."), RIVER) == 1.0
    assert rewards.regex(r"\bwater\b")(said("Waterfalls."), RIVER) == 0.0
    assert rewards.regex(r"^water")(said("Flowing water."), RIVER) == 0.0


def test_regex_ignores_empty_matches() -> None:
    assert rewards.regex(r"z*")(said("Flowing water."), RIVER) == 0.0
    assert rewards.regex(r"")(said("Flowing water."), RIVER) == 0.0


def test_regex_is_not_won_by_saying_the_prompt_back() -> None:
    sample = asked("Write a date in the form Date: 2024-01-31, please.")
    reward = rewards.regex(r"Date: \d{4}-\d\d-\d\d")
    assert reward(said("Write a date in the form Date: 2024-01-31, please."), sample) == 0.0
    assert reward(said("Okay. Write a date in the form Date: 2024-01-31, please."), sample) == 0.0
    assert reward(said("Date: 2031-12-07"), sample) == 1.0


@pytest.mark.parametrize("text", [*NOTHING, *LOOPS])
def test_regex_refuses_cheap_answers(text: str) -> None:
    assert rewards.regex(r"\S")(said(text), RIVER) == 0.0


@pytest.mark.parametrize("pattern", ["(", "[a", 5])
def test_regex_needs_a_valid_pattern(pattern: object) -> None:
    with pytest.raises(TrainError, match="not a regular expression"):
        rewards.regex(pattern)  # type: ignore[arg-type]


# picks_answer


PICK = asked(
    "List: dog, lamp, ice cream, tree. What is the last word in the list?",
    "tree",
    others=("dog", "lamp", "ice cream"),
)


@pytest.mark.parametrize("text", ["tree", 'The last word in the list is "Tree."', "It is tree, the tree."])
def test_picks_answer_takes_the_word(text: str) -> None:
    assert rewards.picks_answer(said(text), PICK) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lamp",
        "trees",
        "street",
        "dog, lamp, ice cream, tree",
        "tree or lamp",
        "Ice cream and tree",
        "tree tree",
        "tree " * 5,
    ],
)
def test_picks_answer_refuses_everything_else(text: str) -> None:
    assert rewards.picks_answer(said(text), PICK) == 0.0


@pytest.mark.parametrize(
    "sample",
    [asked("?"), asked("?", "tree"), asked("?", "tree", others="dog"), asked("?", None, others=["dog"])],
)
def test_picks_answer_needs_the_choices(sample: object) -> None:
    with pytest.raises(ValueError, match="answer and a list"):
        rewards.picks_answer(said("tree"), sample)  # type: ignore[arg-type]


# Sums and products


def test_sums_weigh_and_products_gate() -> None:
    one, zero = (lambda completion, sample: 1.0), (lambda completion, sample: 0.0)

    def never(completion: object, sample: object) -> float:
        raise AssertionError("a factor behind a zero was called")

    assert rewards.weighted_sum([(0.25, one), (0.5, one), (9.0, zero)])(said("x"), RIVER) == 0.75
    assert rewards.product([one, one])(said("x"), RIVER) == 1.0
    assert rewards.product([one, zero, never])(said("x"), RIVER) == 0.0


# What holds for all of them


ALL = [
    rewards.ends_itself,
    rewards.max_words(5),
    rewards.regex(r"\w+"),
    rewards.json_schema(True),
]


@given(TEXTS, st.booleans())
def test_any_text_gets_0_or_1(text: str, ended: bool) -> None:
    for reward in [*ALL, rewards.exact_number, rewards.picks_answer]:
        sample = (
            APPLES if reward is rewards.exact_number else PICK if reward is rewards.picks_answer else RIVER
        )
        assert reward(said(text, ended=ended), sample) in (0.0, 1.0)


@given(st.text(" \n.,!?-_*#\"'", max_size=40))
def test_blank_answers_never_earn_anything(text: str) -> None:
    for reward in [*ALL, rewards.weighted_sum([(1.0, reward) for reward in ALL])]:
        assert reward(said(text), RIVER) == 0.0
    assert rewards.exact_number(said(text), APPLES) == 0.0
    assert rewards.picks_answer(said(text), PICK) == 0.0


@pytest.mark.parametrize("name", [*rewards.REWARDS, *rewards.FACTORIES])
def test_every_reward_documents_its_guard(name: str) -> None:
    reward = rewards.REWARDS.get(name) or rewards.FACTORIES[name]
    assert "Guards:" in (reward.__doc__ or "")
