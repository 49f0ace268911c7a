"""Where an answer arrives: every notation that is understood, and those that look like one."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.tasks.rewards import final_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48 + 24 = 72\n#### 72", 72),
        ("#### $1,234.50", Fraction("1234.5")),
        ("#### 3/4", Fraction(3, 4)),
        ("#### **18**", 18),
        ("#### 7\r\n\n", 7),
        (r"So \[ \boxed{42} \].", 42),
        (r"so **$\boxed{42}$**.", 42),
        ("3 + 4 is 7.\nThe answer is 7", 7),
        ("The answer is: 7.\nSo the Answer is **7.0**.", 7),
        ("  **7**.\n", 7),
        (r"Thus \boxed{42}.", 42),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"\boxed{1{,}000}", 1000),
        ("\\boxed{7}\n#### 7.0", 7),
        (r"The answer is \boxed{7}.", 7),
        ("The answer is -$5.", -5),
        ("50 %", 50),
        (r"-\frac{3}{2}", Fraction(-3, 2)),
        (".5", Fraction(1, 2)),
        ("1e5", 100_000),
        ("#### \u22125", -5),
        ("\u20135", -5),  # an en dash is typed for a minus
        ("5 €", 5),
        # No number, or a hedge.
        ("", None),
        ("#### 7\r\nSo she has 9 left.", None),
        (r"\boxed{5}, no: 6", None),
        ("3 + 4 = 7", None),
        ("It is: 7", None),
        ("Answer: 7", None),
        ("Tom: 3\nAnn: 4\nBoth: 7", None),
        ("The answer is 7. So it is: 7", None),
        ("The answer is 6.\nThe answer is 7.", None),
        ("The answer is 7\nor 8", None),
        ("The answer is 7 apples", None),
        ("The answer is not 7", None),
        ("A: 3\nB: 4\nC: 5", None),
        ("A: 3 B: 4 C: 5", None),
        ("A is 3, B is 4, and C is 5.", None),
        ("#### 5\n#### 6", None),
        ("#### Step one\n#### 5", None),
        (r"\boxed{5} or \boxed{6}", None),
        ("\\boxed{7}\nso\n#### 5", None),
        (r"so x = 5, that is \boxed{}", None),
        ("x != 5", None),
        ("x \u2260 5", None),
        ("x >= 5", None),
        ("It is not 5", None),
        ("10 -5", None),
    ],
)
def test_the_number_that_is_found(text: str, expected: Fraction | int | None) -> None:
    assert final_number(text) == expected


CONTINUED = ["10^2", "5 million", "5k", "5²", "5½", "5!", "2 + 2", "1 000 000", "1.000,50", "1,00", "0x1F"]
CONTINUED += ["minus 5", "\u2013(5)", "--5", "- 5", "3\u20135", "1 1/2", r"1\frac{1}{2}", "3/4/5"]
CONTINUED += ["5, 6", "7 or 8"]
CONTINUED += ["3/0", "12:30", "1.2.3", "9" * 101, "1e1000", "\u0663"]


@pytest.mark.parametrize("text", CONTINUED)
def test_what_continues_a_number_makes_it_none(text: str) -> None:
    for answer in (text, f"#### {text}", f"\\boxed{{{text}}}", f"The answer is {text}.", f"So x = {text}"):
        assert final_number(answer) is None, answer


WORDS = st.text(st.sampled_from("abc :=#.,\n"), max_size=20)


@given(
    st.lists(st.integers(0, 99), min_size=2, max_size=5, unique=True), st.lists(WORDS, min_size=6, max_size=6)
)
def test_a_list_of_numbers_is_none_of_them(numbers: list[int], between: list[str]) -> None:
    """Whatever stands between: an answer that says all has no number, unless it names one."""
    text = "".join(f"{word} x {number}" for word, number in zip(between, numbers, strict=False))
    assert "####" in text or final_number(text) is None


@given(st.fractions(), WORDS)
def test_a_number_is_found_in_each_form(number: Fraction, before: str) -> None:
    plain = str(number)
    for text in (plain, f"\\boxed{{{plain}}}", f"The answer is {plain}.", f"#### {plain}"):
        assert final_number(text) == number
        assert "#" in before or text == plain or final_number(f"{before} {text}") == number
