"""Answers that must be JSON: reading one strictly, its leaves, and checking it against a JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..documents import read_json
from ..errors import MissingExtraError, TrainError
from .guards import repeats, words
from .tools import CALL, CALL_BEGIN

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(?P<body>.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


def read_answer(text: str) -> Any:
    """The value of an answer that is one JSON text, bare or in one ``` fence; else a ValueError.

    Calls of tools are JSON, too: an object that no JSON text is, with name and arguments of each.
    """
    text = text.strip()
    fenced, calls = _FENCE.fullmatch(text), [*CALL.finditer(text)]
    try:
        if calls and "".join(call[0] for call in calls) == text:
            return {CALL_BEGIN: [[call[1], _DECODER.decode(call[2])] for call in calls]}
        return _DECODER.decode(fenced["body"] if fenced else text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def has_content(value: Any) -> bool:
    """Whether a JSON value holds any string, number or boolean, and no blank string or one in circles."""
    found = [leaf for _, leaf in _leaves(value) if leaf is not None and not isinstance(leaf, dict | list)]
    return bool(found) and all(words(leaf) and not repeats(leaf) for leaf in found if isinstance(leaf, str))


def leaves(value: Any) -> dict[tuple[str | int, ...], str | float]:
    """The leaves of a JSON value by their path: numbers as they are, anything else as its JSON text.

    Values are equal where their leaves are; true is not 1, and an empty object or list is a leaf.
    """
    return {
        path: leaf
        if isinstance(leaf, int | float) and not isinstance(leaf, bool)
        else json.dumps(leaf, ensure_ascii=False)
        for path, leaf in _leaves(value)
    }


def stands_in(value: Any, text: str) -> bool:
    """Whether an object or a list stands in a text as it is, white space aside."""
    given = "".join(json.dumps(value, ensure_ascii=False).split())
    return isinstance(value, dict | list) and given in "".join(text.split())


def validator(schema: Mapping[str, Any] | bool | str) -> Callable[[Any], bool]:
    """Return a function that says whether a value fits a JSON Schema, or that in a file; it fetches none.

    Raises:
        MissingExtraError: the package jsonschema is not installed.
        TrainError: the schema is not a valid one, or its file cannot be read.
    """
    try:
        import jsonschema
        import referencing
    except ModuleNotFoundError as error:
        if error.name not in ("jsonschema", "referencing"):
            raise
        raise MissingExtraError("the json_schema reward", "jsonschema", "train") from None
    try:
        schema = read_json(schema) if isinstance(schema, str) else schema
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    # Also what its checks of addresses, of a pattern's counts and of what is nested raise.
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TrainError(f"json_schema: not a JSON Schema that can be read: {error}") from None
    except jsonschema.SchemaError as error:
        raise TrainError(f"json_schema: not a valid JSON Schema: {error.message}") from None
    check = kind(schema, registry=referencing.Registry())
    return lambda value: bool(check.is_valid(value))


def _leaves(value: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield path and value of what holds nothing further; without recursion, which deep answers exhaust."""
    level: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while level:
        path, value = level.pop()
        if value and isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            level += (((*path, key), item) for key, item in items)
        else:
            yield path, value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("the JSON repeats a key")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)
