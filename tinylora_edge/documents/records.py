"""Records: dataclasses that were written as JSON, made again from what a file holds by now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def restored(kind: type[Record], values: Any, given: Mapping[str, Any] | None = None) -> Record:
    """Return a dataclass of the values that a document has for its fields, each of its field's type.

    Args:
        kind: of the dataclass; its fields are numbers, texts, and lists and objects of these.
        values: the object in the document. Fields that it lacks keep their defaults.
        given: values of fields that are not in the document, whatever their types.

    Raises:
        ValueError: it is no object, lacks a field, has another one, or one of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"its state is {type(values).__name__}, expected an object")
    given, hints = given or {}, get_type_hints(kind)
    known = {field.name for field in fields(kind) if field.name not in given}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"its state has {str(name)[:40]!r}, which no state has")
        if not _is(value, hints[name]):
            raise ValueError(f"{name} in its state is {value!r:.60}, expected {hints[name]}")
    try:
        return kind(**given, **values)
    except TypeError as error:  # a field is missing
        raise ValueError(str(error)) from None


def _is(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint is float:
        return type(value) in (int, float)
    if get_origin(hint) is list:
        (inner,) = get_args(hint)
        return isinstance(value, list) and all(_is(each, inner) for each in value)
    if get_origin(hint) is dict:
        _, inner = get_args(hint)
        return isinstance(value, dict) and all(_is(each, inner) for each in value.values())
    return type(value) is hint
