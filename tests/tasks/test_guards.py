"""What counts as an answer at all: the guards that the rewards share."""

from __future__ import annotations

import pytest
from answers import LOOPS, NOTHING, RIVER, asked
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.tasks.guards import copies, count_words, own_words, repeats, says_nothing


@pytest.mark.parametrize("text", NOTHING)
def test_an_answer_without_content_says_nothing(text: str) -> None:
    assert says_nothing(text, RIVER)


@pytest.mark.parametrize(
    "text", ["Flowing water.", "A river is a large stream of water.", "7", "\u6cb3\u6d41"]
)
def test_an_answer_with_content_says_something(text: str) -> None:
    assert not says_nothing(text, RIVER)


@pytest.mark.parametrize("text", LOOPS)
def test_three_times_in_a_row_is_a_repetition(text: str) -> None:
    assert repeats(text)


@pytest.mark.parametrize(
    "text", ["water water", "to be or not to be", "a b c d e f g h i a b c d e f g h i", ""]
)
def test_less_is_not(text: str) -> None:
    assert not repeats(text)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8), st.text("xyz ", max_size=10))
def test_any_phrase_of_up_to_8_words_is_noticed(unit: list[str], before: str) -> None:
    assert repeats(f"{before} {' '.join(unit * 3)} end")


def test_gluing_words_together_does_not_make_them_fewer() -> None:
    assert count_words("one two three") == 3
    assert count_words("one-two_three/four") == 4
    assert count_words("internationalization") == 1
    assert count_words("a" * 200) == 10
    assert count_words("\u5927\u304d\u306a\u5ddd") == 4
    assert count_words("it's John\u2019s") == 2


def test_own_words_are_neither_the_prompts_nor_function_words() -> None:
    assert own_words("A river is a wide stream; 3 words.", RIVER) == ["wide", "stream", "3"]


def test_a_copy_is_a_whole_answer_out_of_the_prompt() -> None:
    sample = asked("Tom has 3 apples and gets 4 more.")
    assert copies("has 3 apples and", sample)
    assert copies("HAS 3 apples, and gets", sample)
    assert not copies("gets 4 more", sample)  # three words may be chance
    assert not copies("has 3 apples and 4 more", sample)
    assert not copies("", sample)
