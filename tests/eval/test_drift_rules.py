"""The rules that judge greedy answers: whether they repeat themselves, and whether they are right."""

from __future__ import annotations

import pytest

from tinylora_edge.eval.drift import is_right, repeats_itself


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
