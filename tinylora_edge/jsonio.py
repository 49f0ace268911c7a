"""JSON, read within limits of size, of depth and of the digits of a number; and written.

A document that is wrong raises a ValueError, to which the caller adds the name of the file. `restored` makes
a dataclass of a document again.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from os import PathLike
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .limits import DEPTH, DIGITS, DOCUMENT_BYTES
from .writes import atomic_write, open_file

Record = TypeVar("Record")


def parse_json(
    data: bytes | str,
    *,
    limit: int = DOCUMENT_BYTES,
    strict: bool = False,
    parse_float: Callable[[str], Any] | None = None,
) -> Any:
    """Return the value of a JSON text in UTF-8; ValueError where it is none, too long or too deep.

    `strict` refuses what Python reads beyond JSON: a key that is there twice, NaN, Infinity, and numbers that
    a float cannot hold (1e999). `parse_float` makes the value of a number with a point or an exponent.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start + 1})") from None
    decoder = json.JSONDecoder(
        parse_int=_integer,
        parse_float=parse_float or (_finite if strict else None),
        parse_constant=_constant if strict else None,
        object_pairs_hook=_object if strict else None,
    )
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if raw.count(b"[") + raw.count(b"{") > DEPTH:
        level = [value]
        for _ in range(DEPTH):
            inner = (each.values() if isinstance(each, dict) else each for each in level if each)
            level = [each for values in inner for each in values if isinstance(each, dict | list)]
            if not level:
                return value
        raise ValueError(f"it is nested more than {DEPTH} levels deep")
    return value


def read_json(path: str | PathLike[str], *, limit: int = DOCUMENT_BYTES, strict: bool = False) -> Any:
    """Return the value of a JSON file, which may begin with a byte order mark. OSError: it cannot be read.
    ValueError: as for `parse_json`."""
    with open_file(path) as file:
        return parse_json(file.read(limit + 1).removeprefix(codecs.BOM_UTF8), limit=limit, strict=strict)


def write_json(path: str | PathLike[str], value: Any) -> None:
    """Write a value as an indented JSON file, all or nothing. OSError: it cannot be written."""
    with atomic_write(path) as file:
        file.write((json.dumps(plain(value), indent=2) + "\n").encode())


def plain(value: Any) -> Any:
    """Return a value in which NaN and infinity, which JSON does not have, are None, and tuples are lists."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise ValueError(f"it has a number of more than {DIGITS} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"the number {digits:.40} is too large")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r:.60} is there twice")
        result[key] = value
    return result


def restored(kind: type[Record], values: Any, beside: Mapping[str, Any] | None = None) -> Record:
    """Return a dataclass whose fields have the values of a document.

    Each value must have its field's type. A field that the document lacks keeps its default; `beside` has the
    values of fields that the document must not have.

    ValueError: it is no object, lacks a field, has another one, or one of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"found {type(values).__name__}, expected an object")
    beside, hints = beside or {}, get_type_hints(kind)
    known = {field.name for field in fields(kind) if field.name not in beside}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{str(name)[:40]!r} is unknown: expected {', '.join(sorted(known))}")
        if not _is(value, hint := hints[name]):
            expected = hint if get_args(hint) else hint.__name__
            raise ValueError(f"{name} is {value!r:.60}, expected {expected}")
    try:
        return kind(**beside, **values)
    except TypeError as error:  # a field is missing
        raise ValueError(str(error)) from None


def _is(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if isinstance(hint, UnionType):
        return any(_is(value, each) for each in get_args(hint))
    if hint is float:
        return type(value) in (int, float)
    if get_origin(hint) is list:
        (inner,) = get_args(hint)
        return isinstance(value, list) and all(_is(each, inner) for each in value)
    if get_origin(hint) is dict:
        _, inner = get_args(hint)
        return isinstance(value, dict) and all(_is(each, inner) for each in value.values())
    return type(value) is hint
