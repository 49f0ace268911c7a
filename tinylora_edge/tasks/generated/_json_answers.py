"""Answers that must be one JSON object with known values: reading them, and comparing values strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from ..rewards.schema import read_answer
from ..task import Completion

Values: TypeAlias = Mapping[str, str | int]

_BEFORE = re.compile(r"\s*(?:```(?:json)?\s*)?")


def read_object(completion: Completion) -> tuple[Mapping[str, Any] | None, bool]:
    """Return the JSON object that an answer is or begins with, if any, and whether that is all of it.

    It is all where the answer ended by itself and has nothing beside the object, but for one ``` fence.
    """
    whole = completion.ended
    try:
        value = read_answer(completion.text)
    except ValueError:
        whole = False
        value = _beginning(completion.text)
    return (value, whole) if isinstance(value, Mapping) else (None, False)


def equal(value: Any, expected: str | int) -> bool:
    """Whether a JSON value is the expected one and of its type: neither "12" nor true is a number."""
    if isinstance(expected, str):
        return isinstance(value, str) and value == expected
    return isinstance(value, int | float) and not isinstance(value, bool) and value == expected


def all_equal(value: Any, expected: Values) -> bool:
    """Whether a JSON value is an object with exactly the expected keys and values."""
    return (
        isinstance(value, Mapping)
        and set(value) == set(expected)
        and all(equal(value[key], one) for key, one in expected.items())
    )


def schema_of(values: Values) -> str:
    """Return the short schema that prompts show: `{"name": string, "age": number}`."""
    types = ", ".join(
        f'"{key}": {"string" if isinstance(value, str) else "number"}' for key, value in values.items()
    )
    return f"{{{types}}}"


def _beginning(text: str) -> Any:
    before = _BEFORE.match(text)
    try:
        return json.JSONDecoder().raw_decode(text, before.end() if before else 0)[0]
    except (ValueError, RecursionError):
        return None
