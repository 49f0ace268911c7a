"""What an answer says: the number that it arrives at, and its JSON, whose leaves are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeAlias

from ..jsonio import parse_json
from .sample import CALL

_DIGITS = "[0-9]{1,100}"
_SIGN, _MONEY = "[-+\u2212\u2013]", "[$€£¥₹]"  # the minus sign, and the en dash that stands for it
_NUMBER = rf"""
    (?: {_MONEY}(?P<inner>{_SIGN}) | (?P<outer>{_SIGN})?{_MONEY}? )
    (?: (?P<latex>\\[dt]?frac\{{)? (?P<over>{_DIGITS})
            (?(latex)\}}\{{|\s?/\s?) (?P<under>{_DIGITS}) (?(latex)\}})
      | (?P<decimal>
            (?: (?: [0-9]{{1,3}}(?:,[0-9]{{3}}){{1,32}} | {_DIGITS} ) (?:\.{_DIGITS})? | \.{_DIGITS} )
            (?: [eE][-+]?[0-9]{{1,3}} )? ) )
    (?: \s?(?:%|{_MONEY}) )?
"""
_ANSWER = rf"\*{{0,2}} {_NUMBER} \*{{0,2}} \.? \*{{0,2}}"  # bold, and the end of a sentence
_LEAD = r"(?: \A | [\w)\]%}]\s?= | [^\W\d_]:\*{0,2} | \bis\b )"  # what an unmarked number may follow
_MARK = re.compile(r"\#{4} | \\boxed\{", re.VERBOSE)
_AFTER = re.compile(rf"[ \t]* {_ANSWER} [ \t\r]* (?:\n|\Z)", re.VERBOSE)
_INSIDE = re.compile(rf"\s* {_ANSWER} \s* \}}", re.VERBOSE)
_AT_END = re.compile(rf"{_LEAD} \s* {_ANSWER} \s* \Z", re.VERBOSE)

Path: TypeAlias = tuple[str | int | None, ...]
"""Where a leaf of a JSON value is: keys, and places in lists."""

Leaves: TypeAlias = dict[Path, str | float | Decimal]
"""The leaves of a JSON value by their path: numbers as they are, anything else as its JSON text."""

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(?P<body>.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)
_LONGEST = 100  # characters of a number with a point or an exponent
_CALLS = None  # the key of what an answer calls: keys of JSON are texts, places in a list numbers


def final_number(text: str, *, complete: bool = True) -> Fraction | None:
    r"""Return the number that a text arrives at, or None.

    A number is digits, perhaps with commas between groups of three, with a sign (also the minus sign, and the
    en dash that is written for it), decimals and an exponent; or a fraction: `3/4`, `\frac{3}{4}`. Currency
    signs and a percent sign around it are dropped: 50% is 50. At most 100 digits, and 3 of an exponent.

    It stands alone in its line behind `####`, or alone in `\boxed{}`; all marks of a text have to agree.
    A text without a mark is a number and nothing else, or ends in one behind `=`, behind a word with a
    colon, or behind "is". So what continues a number (`5 million`, `5 km`, `minus 5`, `10^2`) makes it None.

    `complete` says that the text ended by itself: where the limit cut it, digits may be missing at its end.
    """
    for latex, plain in (("{,}", ","), ("\\$", "$"), ("\\%", "%")):
        text = text.replace(latex, plain)
    if not complete:
        text += "\0"  # continues whatever number stands at the end
    marks = list(_MARK.finditer(text))
    if not marks:
        return _fraction(_AT_END.search(text))
    values = {_fraction((_AFTER if mark[0] == "####" else _INSIDE).match(text, mark.end())) for mark in marks}
    return values.pop() if len(values) == 1 else None


def _fraction(found: re.Match[str] | None) -> Fraction | None:
    if found is None:
        return None
    sign = 1 if (found["inner"] or found["outer"] or "+") == "+" else -1
    if found["decimal"]:
        return sign * Fraction(found["decimal"].replace(",", ""))
    under = int(found["under"])
    return sign * Fraction(int(found["over"]), under) if under else None


def read_answer(text: str) -> Any:
    """The value of an answer that is one JSON text, bare or in one ``` fence; else a ValueError.

    Numbers with a point or an exponent are exact (`Decimal`). Calls of tools are JSON, too: an object that no
    JSON text is, with name and arguments of each.
    """
    text, calls = text.strip(), [*CALL.finditer(text)]
    if calls and "".join(call[0] for call in calls) == text:
        return {_CALLS: [[call[1], _parsed(call[2])] for call in calls]}
    return _parsed(_body(text))


def leaves(value: Any) -> Leaves:
    """Values are equal where these are: true is not 1, and an empty object or list is a leaf."""
    return {
        path: leaf
        if isinstance(leaf, int | float | Decimal) and not isinstance(leaf, bool)
        else json.dumps(leaf, ensure_ascii=False)
        for path, leaf in _leaves(value)
    }


def stands_in(answer: str, text: str) -> bool:
    """Whether an object or a list stands in a text as it is, white space aside."""
    body = "".join(_body(answer).split())
    return body.startswith(("{", "[")) and body in "".join(text.split())


def _body(text: str) -> str:
    fenced = _FENCE.fullmatch(text.strip())
    return fenced["body"] if fenced else text


def _parsed(text: str) -> Any:
    return parse_json(text, strict=True, parse_float=_exact)


def _exact(text: str) -> Decimal:
    if len(text) > _LONGEST:
        raise ValueError(f"it has a number of more than {_LONGEST} characters")
    try:
        return Decimal(text)
    except ArithmeticError:
        raise ValueError(f"the number {text} has too large an exponent") from None


def _leaves(value: Any) -> Iterator[tuple[Path, Any]]:
    """Yield path and value of what holds nothing further; without recursion, which deep answers exhaust."""
    level: list[tuple[Path, Any]] = [((), value)]
    while level:
        path, value = level.pop()
        if value and isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            level += (((*path, key), item) for key, item in items)
        else:
            yield path, value
