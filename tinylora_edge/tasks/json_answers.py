"""Answers that must be JSON: reading one strictly, and its leaves, which are what is compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, TypeAlias

from ..jsonio import parse_json
from .sample import CALL

Path: TypeAlias = tuple[str | int | None, ...]
"""Where a leaf of a JSON value is: keys, and places in lists."""

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(?P<body>.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)
_NUMBER = 100  # characters of a number with a point or an exponent
_CALLS = None  # the key of what an answer calls: keys of JSON are texts, places in a list numbers


def read_answer(text: str) -> Any:
    """The value of an answer that is one JSON text, bare or in one ``` fence; else a ValueError.

    Numbers with a point or an exponent are exact (`Decimal`). Calls of tools are JSON, too: an object that no
    JSON text is, with name and arguments of each.
    """
    text, calls = text.strip(), [*CALL.finditer(text)]
    if calls and "".join(call[0] for call in calls) == text:
        return {_CALLS: [[call[1], _value(call[2])] for call in calls]}
    return _value(_body(text))


def leaves(value: Any) -> dict[Path, str | float | Decimal]:
    """The leaves of a JSON value by their path: numbers as they are, anything else as its JSON text.

    Values are equal where their leaves are; true is not 1, and an empty object or list is a leaf.
    """
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


def _value(text: str) -> Any:
    return parse_json(text, strict=True, parse_float=_exact)


def _exact(text: str) -> Decimal:
    if len(text) > _NUMBER:
        raise ValueError(f"it has a number of more than {_NUMBER} characters")
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
