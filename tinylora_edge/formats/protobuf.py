"""A reader of protocol buffers, just enough to look into an ONNX file without the onnx package.

What is not looked at is skipped by its length, so a model of any size costs milliseconds.
Wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from ..limits import KEY_BYTES, ONNX_FIELDS

Span = tuple[int, int]
"""Place of a field's content in the file: bytes [start, end)."""
Value = int | Span
"""Value of a field: an integer, or where its bytes lie."""
Buffer = mmap.mmap

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MalformedProtobufError(ValueError):
    """Error of bytes that are no protocol buffer."""


@contextmanager
def opened(path: str | PathLike[str]) -> Iterator[Buffer]:
    """Map a file for reading.

    Raises:
        MalformedProtobufError: it is empty.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise MalformedProtobufError("it is empty") from None
    with data:
        yield data


def fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, Value]]:
    """Yield number and value of the fields of the message in [start, end).

    Raises:
        MalformedProtobufError: there is no such message, or it has too many fields.
    """
    position, left = start, ONNX_FIELDS
    while position < end:
        if not left:
            raise MalformedProtobufError(f"a message has more than {ONNX_FIELDS:,} fields")
        left -= 1
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if not number:
            raise MalformedProtobufError("a field has number 0")
        if wire == _VARINT:
            value, position = _varint(data, position, end)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position, end)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise MalformedProtobufError(f"a field has wire type {wire}")
        if position + size > end:
            raise MalformedProtobufError("it is cut off")
        yield number, (position, position + size)
        position += size


def integer(value: Value) -> int:
    """Return an integer field's value."""
    if not isinstance(value, int):
        raise MalformedProtobufError("an integer is expected where bytes are")
    return value


def span(value: Value) -> Span:
    """Return where a field's bytes lie."""
    if isinstance(value, int):
        raise MalformedProtobufError("bytes are expected where an integer is")
    return value


def text(data: Buffer, value: Value, most: int = KEY_BYTES) -> str:
    """Return a string field's value, of so many bytes at most."""
    start, end = span(value)
    if end - start > most:
        raise MalformedProtobufError(f"a name or a text has {end - start:,} bytes: at most {most:,} are read")
    try:
        return data[start:end].decode()
    except UnicodeDecodeError:
        raise MalformedProtobufError("a text is not UTF-8") from None


def _varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    if position < end and (byte := data[position]) < 0x80:  # as most have
        return byte, position + 1
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise MalformedProtobufError("it is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise MalformedProtobufError("an integer has more than 10 bytes")
