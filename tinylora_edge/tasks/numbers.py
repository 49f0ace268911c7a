"""The number that an answer arrives at, in the (English) notations of word problems: 1,000.5."""

from __future__ import annotations

import re
from fractions import Fraction

# Digits right behind a letter belong to a name ("x2"), digits behind "1.2." to a version; "13th" is none.
_NUMBER = re.compile(
    r"(?<![A-Za-z_0-9])(?<![0-9]\.)(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?+"
    r"(?!(?:st|nd|rd|th)\b)"
    r"|(?<![\w.])\.[0-9]++"
)
# What stands before a number: perhaps an operand, perhaps a sign that touches the number or its currency.
_BEFORE = re.compile(r"(?P<operand>\S?)(?P<gap>\s*)(?:[-\u2212][$€£¥₹]?|[$€£¥₹][-\u2212])\Z")
_FRACTION = re.compile(r"(?P<sign>-?)\s*(?:\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}|(\d+)\s*/\s*(\d+))", re.ASCII)
_MARK = re.compile(r"####(?P<rest>[^\n]*)")
_MARK_START = re.compile(r"[\s*_:=(]*[-+\u2212]?[$€£¥₹]?[-\u2212]?\s?\.?[0-9]")
_BOX = "\\boxed{"
_BRACE = re.compile(r"\\boxed\{|[{}]")
_MOST_DIGITS = 100  # a longer run is noise, and slow to convert


def final_number(text: str, *, complete: bool = True) -> Fraction | None:
    r"""Return the number that a text arrives at, or None.

    Looked for in this order: after `####` (GSM8K), inside `\boxed{...}`, the last number of the text.
    Understood: thousands commas, currency signs, units and percent signs (dropped: 50% is 50), decimals,
    a sign, a trailing period. A marked answer may also be a fraction: 3/4 or \frac{3}{4}.

    Args:
        text: an answer.
        complete: whether it ended by itself. If the token limit cut it, a number at its very end does
            not count: more digits may have been on their way.

    None comes back where there is no number, and where the text hedges: marks that disagree, or one
    mark with several numbers.
    """
    text = _without_latex(text)
    marks = [match["rest"] for match in _MARK.finditer(text) if _MARK_START.match(match["rest"])]
    if marks and not complete and text.endswith(marks[-1]):
        marks[-1] = _without_cut(marks[-1])
    answers = marks or _boxes(text)
    if answers:
        values = {_single(answer) for answer in answers}
        return values.pop() if len(values) == 1 else None
    found = _numbers(text if complete else _without_cut(text))
    cut = not complete and len(found) < len(_numbers(text))
    return found[-1] if found and not cut else None


def _without_latex(text: str) -> str:
    for latex, plain in (("{,}", ","), ("\\,", ""), ("\\!", ""), ("\\$", "$"), ("\\%", "%")):
        text = text.replace(latex, plain)
    return text


def _without_cut(text: str) -> str:
    return text.rstrip("0123456789.,")


def _numbers(text: str) -> list[Fraction]:
    found = []
    for match in _NUMBER.finditer(text):
        digits = match[0].replace(",", "")
        if len(digits) <= _MOST_DIGITS:
            found.append(Fraction(digits) * (-1 if _is_negative(text, match.start()) else 1))
    return found


def _is_negative(text: str, start: int) -> bool:
    """Whether the sign before a number is its own: "is -5" is negative, "10-5" and "10 -5" differ."""
    before = _BEFORE.search(text[max(0, start - 16) : start])
    if before is None:
        return False
    operand = before["operand"]
    return not (operand.isdigit() or operand in {")", "]", "%"} or (operand.isalpha() and not before["gap"]))


def _single(answer: str) -> Fraction | None:
    fraction = _FRACTION.fullmatch(answer.strip(" \t*_.$"))
    if fraction:
        over, under = (part for part in fraction.groups()[1:] if part)
        if len(over) + len(under) > _MOST_DIGITS or not int(under):
            return None
        return Fraction(int(over), int(under)) * (-1 if fraction["sign"] else 1)
    values = set(_numbers(answer))
    return values.pop() if len(values) == 1 else None


def _boxes(text: str) -> list[str]:
    r"""Return what stands in each closed \boxed{...}, braces inside it balanced."""
    found = []
    opened: list[int | None] = []  # where a box's content starts; None for another brace
    for match in _BRACE.finditer(text):
        if match[0] != "}":
            opened.append(match.end() if match[0] == _BOX else None)
        elif opened:
            start = opened.pop()
            if start is not None:
                found.append(text[start : match.start()])
    return found
