"""What an ONNX file says about itself, read without the onnx package and without its graph.

A device checks which basis a graph was baked with before an engine starts, and has no package that reads
ONNX. The fields of a `ModelProto` lie one after the other, so the graph, however large, is one seek.
Wire format: https://protobuf.dev/programming-guides/encoding; fields: onnx.proto, `ModelProto`.
"""

from __future__ import annotations

import os
from os import PathLike
from typing import IO

from .errors import BaseMismatchError

_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_ENTRY_BYTES = 1 << 26  # our longest, the module names, takes some 10 KB


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX model file.

    Raises:
        BaseMismatchError: the file is not an ONNX model, or is truncated.
        OSError: it cannot be read.
    """
    found: dict[str, str] = {}
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            while file.tell() < size:
                field, wire, length = _tag(file)
                if file.tell() + length > size:
                    raise ValueError("it ends in the middle of a field")
                if field == _METADATA_PROPS and wire == _BYTES:
                    if length > _MAX_ENTRY_BYTES:
                        raise ValueError(f"an entry of its metadata has {length:,} bytes")
                    key, value = _entry(file, file.tell() + length)
                    found[key] = value
                else:
                    file.seek(length, os.SEEK_CUR)
        except ValueError as error:
            raise BaseMismatchError(f"{path} is not a usable ONNX model: {error}") from None
    return found


def _entry(file: IO[bytes], end: int) -> tuple[str, str]:
    """Read a `StringStringEntryProto` that ends at `end`."""
    parts = {_KEY: "", _VALUE: ""}
    while file.tell() < end:
        field, _, length = _tag(file)
        if file.tell() + length > end:
            raise ValueError("an entry of its metadata is longer than it says")
        parts[field] = file.read(length).decode()
    return parts[_KEY], parts[_VALUE]


def _tag(file: IO[bytes]) -> tuple[int, int, int]:
    """Read a field's head: its number, its wire type, and the bytes of content that follow."""
    tag = _varint(file)
    field, wire = tag >> 3, tag & 7
    if field == 0 or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
        raise ValueError(f"byte {file.tell()} starts no field of a protocol buffer")
    if wire == _VARINT:
        _varint(file)
        return field, wire, 0
    return field, wire, {_FIXED64: 8, _FIXED32: 4}.get(wire) or _varint(file)


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError(f"no number ends at byte {file.tell()}")
