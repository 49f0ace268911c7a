"""The general prompts that are shipped: how many, how varied, and that nobody trains on them."""

from __future__ import annotations

import pytest
from answers import normalized

from tinylora_edge.tasks import BUILTIN, load_task
from tinylora_edge.tasks.general_prompts import is_right, load_general, repeats_itself

HELD_OUT, TRAIN = load_general(), load_general(split="train")
ALL = HELD_OUT + TRAIN


@pytest.mark.parametrize("name", [name for name in BUILTIN if name != "gsm8k"])
def test_none_is_a_prompt_of_a_task(name: str) -> None:
    task = load_task(name)
    prompts = {normalized(sample.text) for sample in (*task.train, *task.held_out, *task.shifted)}
    assert not prompts & {normalized(sample.text) for sample in ALL}


# The rules that judge the answers


@pytest.mark.parametrize(
    "text",
    [
        "laugh, laugh, laugh",
        "The old pond. The old pond! The old pond.",
        "We go to the sea. Then we go to the hills. At last we go to the inn.",
    ],
)
def test_what_repeats_itself(text: str) -> None:
    assert repeats_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "very, very good",
        "We go to the sea, and we go to the hills.",
        "An old silent pond, a frog jumps into the pond, splash! Silence again.",
        "One apple, two apples, three apples",
    ],
)
def test_what_does_not(text: str) -> None:
    assert not repeats_itself(text)


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("7 + 5 = 12.", ["12"]),
        ("The sum is twelve!", ["12", "twelve"]),
        ("(12)", ["12"]),
        ("It is MARS", ["Mars"]),
        ("A kilometer has 1,000 meters.", ["1000", "1,000"]),
        ("It says *Guten  Morgen*", ["guten  morgen"]),
    ],
)
def test_what_is_right(text: str, answers: list[str]) -> None:
    assert is_right(text, answers)


@pytest.mark.parametrize(
    "text", ["", "112", "1,012", "12.5", "12,000", "0.12", "12th", "a12", "The answer is 13."]
)
def test_what_is_wrong(text: str) -> None:
    assert not is_right(text, ["12"])
