"""Answers that must be JSON: reading one strictly, its values, and checking it against a JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..documents import read_json
from ..errors import MissingExtraError, TrainError

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(?P<body>.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


def read_answer(text: str) -> Any:
    """Return the value of an answer that is one JSON text, bare or in one ``` fence, and nothing else.

    Raises:
        ValueError: it is not, it repeats a key, it has NaN or Infinity, or it is nested too deeply.
    """
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


def leaves(value: Any) -> Iterator[Any]:
    """Yield the strings, numbers and booleans of a JSON value, without null."""
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield value


def validator(schema: Mapping[str, Any] | bool | str) -> Callable[[Any], bool]:
    """Return a function that says whether a value fits a JSON Schema. No reference is ever fetched.

    Args:
        schema: a schema, or the path of a file with one.

    Raises:
        MissingExtraError: the package jsonschema is not installed.
        TrainError: the schema is not a valid one, or its file cannot be read.
    """
    if isinstance(schema, str):
        schema = _read_schema(schema)
    if not isinstance(schema, Mapping | bool):
        raise TrainError(f"json_schema takes a JSON Schema, an object, not {schema!r}")
    try:
        import jsonschema
        import referencing
    except ModuleNotFoundError as error:
        if error.name not in ("jsonschema", "referencing"):
            raise
        raise MissingExtraError("the json_schema reward", "jsonschema", "train") from None
    dialect = schema.get("$schema", "") if isinstance(schema, Mapping) else ""
    if not isinstance(dialect, str):
        raise TrainError(f'json_schema: "$schema" is {dialect!r}, expected the address of a dialect, as text')
    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    except ValueError as error:
        raise TrainError(f'json_schema: "$schema" is {dialect!r}, which is no address: {error}') from None
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise TrainError(f"json_schema: not a valid JSON Schema: {error.message}") from None
    except (OverflowError, RecursionError) as error:  # of a pattern's counts, or of what is nested
        raise TrainError(f"json_schema: not a JSON Schema that can be checked: {error}") from None
    check = kind(schema, registry=referencing.Registry())
    return lambda value: bool(check.is_valid(value))


def _read_schema(path: str) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise TrainError(f"json_schema: cannot read a JSON Schema from {path!r}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("the JSON repeats a key")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
