"""Where an answer arrives: every notation that is understood, and those that look like one."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinylora_edge.tasks.numbers import final_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48 + 24 = 72\n#### 72", 72),
        ("#### $1,234.50", Fraction("1234.5")),
        ("#### \u22125", -5),
        ("#### 3/4", Fraction(3, 4)),
        ("#### **18**", 18),
        ("#### 7\nSo she has 9 left.", 7),  # the mark wins over what follows
        (r"Thus \boxed{42}.", 42),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"\boxed{1{,}000}", 1000),
        (r"\boxed{\text{about } \$12}", 12),
        ("She has 3 + 4 = 7 apples.", 7),
        ("It costs -$5.", -5),
        ("half, or .5", Fraction(1, 2)),
        ("10 -5", 5),
        ("10 - 5 = 5 apples", 5),
        ("from 3\u20135 days", 5),
        ("a drop to (-5)", -5),
        ("6 miles on the 13th day", 6),
        ("#### Step one\n#### 9", 9),  # a heading is no answer
        ("No.5", 5),
    ],
)
def test_the_number_is_found(text: str, expected: Fraction | int) -> None:
    assert final_number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#### 5\n#### 6",
        r"\boxed{5} or \boxed{6}",
        r"\boxed{5, 6}",
        r"so 5, that is \boxed{}",
        "#### 3/0",
        "1" * 101,
    ],
)
def test_no_number_or_a_hedge_is_none(text: str) -> None:
    assert final_number(text) is None


@pytest.mark.parametrize("text", ["8 + 7 = 1", "8 + 7 = 15", "#### 1", "the sum is 15.", "the sum is 1,"])
def test_a_number_that_the_limit_may_have_cut_does_not_count(text: str) -> None:
    assert final_number(text, complete=True) is not None
    assert final_number(text, complete=False) is None


NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3)


@given(NUMBERS)
def test_every_spelling_of_a_number_is_the_same_number(number: object) -> None:
    value = Fraction(str(number))
    plain = f"{number:f}"
    grouped = f"{number:,f}"
    for text in (
        f"#### {plain}",
        f"\\boxed{{{grouped}}}",
        f"It is {grouped}.",
        f"So x = {plain} apples, yes.",
    ):
        assert final_number(text) == value, text


@given(st.text(max_size=200), st.booleans())
@example("#### " + "9" * 5000, True)
@example("\\boxed{" * 50, True)
@example("####\u0663", False)  # an Arabic digit: not a number here, and no crash
@example("#### ²/3", True)
def test_no_text_breaks_the_search(text: str, complete: bool) -> None:
    value = final_number(text, complete=complete)
    assert value is None or isinstance(value, Fraction)
