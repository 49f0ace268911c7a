"""JSON and TOML that others wrote, read within limits: of size, of depth, of the digits of a number.

The parsers of Python's library go on until memory or the stack is over, and raise errors of several kinds.
Here everything that is wrong with a document is a ValueError, which the caller turns into its own, with the
name of the file. `restored` makes a program's own state again from what it wrote.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from .limits import DEPTH, DIGITS, DOCUMENT_BYTES, TOML_BYTES, TOML_DOTS

Record = TypeVar("Record")

# Possessive: else every character of a text costs a hundred bytes, to come back to.
_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.S)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_OPENING = np.frombuffer(b"[{", np.uint8)
# The strings and comments of TOML. A string of several lines ends with its quotes and up to two of its own.
_ASIDE = re.compile(
    r'''"""(?:[^"\\]++|\\[\s\S]|"{1,2}(?!"))*+(?:"{3,5}|\Z)'''
    r"""|'''(?:[^']++|'{1,2}(?!'))*+(?:'{3,5}|\Z)"""
    r"""|"(?:[^"\\\n]++|\\.)*+"?|'[^'\n]*+'?|#.*+"""
)
_LONG = re.compile(rf"[0-9_]{{{DIGITS + 1},}}")


def parse_json(data: bytes | bytearray | memoryview | str, *, limit: int = DOCUMENT_BYTES) -> Any:
    """Return the value of a JSON text.

    Args:
        data: UTF-8, or text.
        limit: of its bytes.

    Raises:
        ValueError: it is no JSON, or beyond a limit.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else bytes(data)
    _check_size(raw, limit)
    if raw.count(b"[") + raw.count(b"{") > DEPTH and _depth(raw) > DEPTH:
        raise ValueError(f"it is nested more than {DEPTH} levels deep")
    try:
        return json.loads(_text(raw), parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _depth(raw: bytes) -> int:
    """Return how deep a JSON text nests, or what is as deep at least where it is none."""
    brackets = np.frombuffer(_TEXTS.sub(b"", raw).translate(None, _NO_BRACKETS), np.uint8)
    steps = np.where(np.isin(brackets, _OPENING), np.int8(1), np.int8(-1))
    return int(steps.cumsum(dtype=np.int32).max(initial=0))


def read_json(path: str | PathLike[str], *, limit: int = DOCUMENT_BYTES) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, beyond a limit, or its name is none.
    """
    return parse_json(_read(path, limit), limit=limit)


def parse_toml(data: bytes | str, *, limit: int = TOML_BYTES) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        ValueError: it is no TOML, or beyond a limit.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    _check_size(raw, limit)
    text = _text(raw)
    bare = _ASIDE.sub("", text)
    if _LONG.search(bare):
        raise ValueError(f"it has a number of more than {DIGITS} digits")
    if any(line.count(".") > TOML_DOTS for line in bare.split("\n")):
        raise ValueError(f"it has a key of more than {TOML_DOTS} parts")
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level: list[Any] = [tables]
    for _ in range(DEPTH):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return tables
    raise ValueError(f"it is nested more than {DEPTH} levels deep")


def read_toml(path: str | PathLike[str], *, limit: int = TOML_BYTES) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no TOML, beyond a limit, or its name is none.
    """
    return parse_toml(_read(path, limit), limit=limit)


def _read(path: str | PathLike[str], limit: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(limit + 1)


def _check_size(data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start + 1})") from None


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise ValueError(f"it has a number of more than {DIGITS} digits")
    return int(digits)


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
        raise ValueError(f"found {type(values).__name__}, expected an object")
    given, hints = given or {}, get_type_hints(kind)
    known = {field.name for field in fields(kind) if field.name not in given}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{str(name)[:40]!r} is unknown: expected {', '.join(sorted(known))}")
        if not _is(value, hints[name]):
            raise ValueError(f"{name} is {value!r:.60}, expected {_named(hints[name])}")
    try:
        return kind(**given, **values)
    except TypeError as error:  # a field is missing
        raise ValueError(str(error)) from None


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


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
