"""What an ONNX graph takes and where its weights lie, read without an engine: milliseconds.

Only the protobuf fields that the checks before a load need; tensors are skipped by their length.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BaseMismatchError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Field numbers of onnx.proto, unchanged since 2017.
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSETS = 1, 7, 8
_GRAPH_INITIALIZER, _GRAPH_INPUT = 5, 11
_VALUE_NAME, _TENSOR_NAME, _TENSOR_EXTERNAL = 1, 8, 13
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2


@dataclass(frozen=True)
class External:
    """Where the data of an initializer lie: a file beside the model, and the bytes in it."""

    location: str
    offset: int
    length: int


@dataclass
class OnnxFile:
    """The parts of an ONNX model that tell whether it can be loaded.

    Attributes:
        path: of the `.onnx` file.
        ir_version: of the model.
        opsets: domain -> version; the default domain is "".
        inputs: names of the graph's inputs, initialized or not.
        initializers: name -> its external data, or None where they are inline.
    """

    path: Path
    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    initializers: dict[str, External | None] = field(default_factory=dict)

    def check_data(self) -> None:
        """Check that every file of external data is there, whole, and one that ONNX Runtime accepts.

        Raises:
            BaseMismatchError: a file is missing, too short, a symbolic link, or outside the model's folder.
        """
        ends: dict[str, int] = {}
        for data in self.initializers.values():
            if data is not None:
                ends[data.location] = max(ends.get(data.location, 0), data.offset + data.length)
        folder = self.path.parent
        for location, end in ends.items():
            where = Path(location)
            if where.is_absolute() or ".." in where.parts:
                raise BaseMismatchError(
                    f"{self.path} keeps weights in {location!r}, outside its folder, which ONNX Runtime "
                    "refuses"
                )
            path = folder / where
            try:
                found = path.lstat()
            except FileNotFoundError:
                raise BaseMismatchError(
                    f"{path}, which holds weights of {self.path.name}, does not exist: copy it there, or "
                    "export again"
                ) from None
            if stat.S_ISLNK(found.st_mode):
                raise BaseMismatchError(
                    f"{path} is a symbolic link, which ONNX Runtime refuses for weights: copy the file "
                    "instead"
                )
            if found.st_size < end:
                raise BaseMismatchError(
                    f"{path} has {found.st_size:,} bytes, but {self.path.name} needs {end:,}: it was cut on "
                    "its way; copy it again"
                )


def read_onnx(path: Path) -> OnnxFile:
    """Read what an ONNX file says about itself.

    Raises:
        FileNotFoundError: there is no such file.
        BaseMismatchError: it is not an ONNX model, or damaged.
    """
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            raise BaseMismatchError(f"{path} is not a usable ONNX model: it is empty") from None
    with data:
        result = OnnxFile(path)
        try:
            _read_model(data, result)
        except (_Malformed, UnicodeDecodeError) as error:
            raise BaseMismatchError(f"{path} is not a usable ONNX model: {error}") from None
    if not result.inputs:
        raise BaseMismatchError(f"{path} is not a usable ONNX model: it has no graph with inputs")
    return result


class _Malformed(Exception):  # noqa: N818 - becomes a BaseMismatchError
    pass


Span = tuple[int, int]
Buffer = mmap.mmap


def _read_model(data: Buffer, result: OnnxFile) -> None:
    for number, value in _fields(data, 0, len(data)):
        if number == _MODEL_IR:
            result.ir_version = _integer(value)
        elif number == _MODEL_GRAPH:
            _read_graph(data, _span(value), result)
        elif number == _MODEL_OPSETS:
            opset = dict(_fields(data, *_span(value)))
            domain = _text(data, opset[_OPSET_DOMAIN]) if _OPSET_DOMAIN in opset else ""
            result.opsets[domain] = _integer(opset.get(_OPSET_VERSION, 0))


def _read_graph(data: Buffer, span: Span, result: OnnxFile) -> None:
    for number, value in _fields(data, *span):
        if number == _GRAPH_INPUT:
            named = dict(_fields(data, *_span(value)))
            if _VALUE_NAME in named:
                result.inputs.append(_text(data, named[_VALUE_NAME]))
        elif number == _GRAPH_INITIALIZER:
            name, external = "", {}
            for inner, part in _fields(data, *_span(value)):
                if inner == _TENSOR_NAME:
                    name = _text(data, part)
                elif inner == _TENSOR_EXTERNAL:
                    key, text = _entry(data, _span(part))
                    external[key] = text
            result.initializers[name] = _external(name, external) if external else None


def _external(name: str, entries: dict[str, str]) -> External:
    try:
        return External(entries["location"], int(entries.get("offset", "0")), int(entries.get("length", "0")))
    except (KeyError, ValueError):
        raise _Malformed(f"the external data of {name!r} are described as {entries}") from None


def _entry(data: Buffer, span: Span) -> tuple[str, str]:
    parts = dict(_fields(data, *span))
    return _text(data, parts.get(1, (0, 0))), _text(data, parts.get(2, (0, 0)))


def _fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int | Span]]:
    """Yield the fields of a message: number, and an integer or where its bytes lie."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if not number:
            raise _Malformed("a field has number 0")
        if wire == _VARINT:
            value, position = _varint(data, position, end)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position, end)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _Malformed(f"a field has wire type {wire}")
        if position + size > end:
            raise _Malformed("it is cut off")
        yield number, (position, position + size)
        position += size


def _varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise _Malformed("it is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Malformed("an integer has more than 10 bytes")


def _integer(value: int | Span) -> int:
    if not isinstance(value, int):
        raise _Malformed("an integer is expected where bytes are")
    return value


def _span(value: int | Span) -> Span:
    if isinstance(value, int):
        raise _Malformed("bytes are expected where an integer is")
    return value


def _text(data: Buffer, value: int | Span) -> str:
    start, end = _span(value)
    return data[start:end].decode()
