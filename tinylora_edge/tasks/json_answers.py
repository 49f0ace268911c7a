"""Answers that must be JSON: reading one strictly, its values, and checking it against a JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..documents import read_json
from ..errors import MissingExtraError, TrainError
from .guards import repeats, words

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(?P<body>.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


def read_answer(text: str) -> Any:
    """The value of an answer that is one JSON text, bare or in one ``` fence; else a ValueError."""
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    try:
        return json.loads(
            fenced["body"] if fenced else text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def has_content(value: Any) -> bool:
    """Whether a JSON value holds any string, number or boolean, and no blank string or one in circles."""
    found = list(_leaves(value))
    return bool(found) and all(words(leaf) and not repeats(leaf) for leaf in found if isinstance(leaf, str))


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


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    elif value is not None:
        yield value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("the JSON repeats a key")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
