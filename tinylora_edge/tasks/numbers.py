r"""The number that an answer arrives at: behind `####`, in `\boxed{}`, or at its end."""

from __future__ import annotations

import re
from fractions import Fraction

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
        return _value(_AT_END.search(text))
    values = {_value((_AFTER if mark[0] == "####" else _INSIDE).match(text, mark.end())) for mark in marks}
    return values.pop() if len(values) == 1 else None


def _value(found: re.Match[str] | None) -> Fraction | None:
    if found is None:
        return None
    sign = 1 if (found["inner"] or found["outer"] or "+") == "+" else -1
    if found["decimal"]:
        return sign * Fraction(found["decimal"].replace(",", ""))
    under = int(found["under"])
    return sign * Fraction(int(found["over"]), under) if under else None
