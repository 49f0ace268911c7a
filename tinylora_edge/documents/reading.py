"""JSON and TOML that others wrote, read within limits: of size, of depth, of the digits of a number.

The parsers of Python's library go on until memory or the stack is over, and raise errors of several kinds.
Here everything that is wrong with a document is a ValueError, which the caller turns into its own, with the
name of the file.
"""

from __future__ import annotations

import json
import re
import tomllib
from os import PathLike
from typing import Any

MAX_BYTES = 1 << 24
"""No document is longer, where its reader names no other limit."""

MAX_TOML_BYTES = 1 << 16
"""A recipe has 1 kB, and the shipped catalog 8."""

MAX_DOTS = 256
"""In a line of TOML, strings and comments aside: the parser's time grows with the square of a key's parts."""

MAX_DEPTH = 64
"""Lists and objects inside each other; what tools write has fewer than 10."""

MAX_DIGITS = 40
"""Of an integer: the state of a random generator has 39."""

_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.S)
_ASIDE = re.compile(r"""\"(?:[^"\\\n]|\\.)*\"?|'[^'\n]*'?|#.*""")
_LONG = re.compile(rf"[0-9_]{{{MAX_DIGITS + 1},}}")


def parse_json(data: bytes | bytearray | memoryview | str, *, limit: int = MAX_BYTES) -> Any:
    """Return the value of a JSON text.

    Args:
        data: UTF-8, or text.
        limit: of its bytes.

    Raises:
        ValueError: it is no JSON, or beyond a limit.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else bytes(data)
    _check_size(raw, limit)
    depth = 0
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        for found in _MARKS.finditer(raw):
            mark = found.group()
            depth += (mark in b"[{") - (mark in b"]}")
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    try:
        return json.loads(_text(raw), parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: str | PathLike[str], *, limit: int = MAX_BYTES) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, beyond a limit, or its name is none.
    """
    return parse_json(_read(path, limit), limit=limit)


def parse_toml(data: bytes | str, *, limit: int = MAX_TOML_BYTES) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        ValueError: it is no TOML, or beyond a limit.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    _check_size(raw, limit)
    text = _text(raw)
    if _LONG.search(text):
        raise ValueError(f"it has a number of more than {MAX_DIGITS} digits")
    if any(line.count(".") > MAX_DOTS for line in _ASIDE.sub("", text).split("\n")):
        raise ValueError(f"it has a key of more than {MAX_DOTS} parts")
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level: list[Any] = [tables]
    for _ in range(MAX_DEPTH):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return tables
    raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def read_toml(path: str | PathLike[str], *, limit: int = MAX_TOML_BYTES) -> dict[str, Any]:
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
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"it has a number of more than {MAX_DIGITS} digits")
    return int(digits)
