"""A baked ONNX graph as a file: the names that both sides share, and what it says, read without an engine.

The exporter writes these names and a device reads them, so they stand here alone (docs/FORMAT.md, "ONNX
graph"). A device has no package that reads ONNX, and checks a graph before an engine starts: only the
fields that the checks need are read, tensors are skipped by their length, and a model of any size costs
milliseconds. Wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from os import PathLike
from pathlib import Path

from ..errors import BaseMismatchError
from ..limits import KEY_BYTES, KEYS, ONNX_FIELDS, STRING_BYTES, TENSORS

MODEL_NAME, GENAI_NAME = "model.onnx", "genai_config.json"
"""File names in a bundle's ONNX folder: the graph, and onnxruntime-genai's configuration."""

INPUT_NAME = "tinylora_v"
"""Name of the graph input that takes the vector: float32 [rows, n], one row or one for each sequence."""

DEFAULT, REQUIRED = "default", "required"
"""Flavours of that input: with an initializer of zeros, and without."""


class MetadataKey(StrEnum):
    """A key of the `metadata_props` that a baked graph carries; the values are strings."""

    VERSION = "tinylora.version"
    DIGEST = "tinylora.digest"
    FINGERPRINT = "tinylora.fingerprint"
    ARCHITECTURE = "tinylora.architecture"
    RANK = "tinylora.rank"
    U = "tinylora.u"
    GROUPS = "tinylora.groups"
    SEED = "tinylora.seed"
    PROJECTION = "tinylora.projection"
    FACTORIZATION = "tinylora.factorization"
    TYING = "tinylora.tying"
    TYING_GROUPS = "tinylora.tying.groups"
    MODULES = "tinylora.modules"
    FLAVOUR = "tinylora.flavour"
    WEIGHTS = "tinylora.weights"


FINGERPRINT_MARK = b"tinylora onnx 1\n"
"""What a fingerprint of a graph's weights begins with."""
EDGE_BYTES = 4096
"""How many bytes of each tensor's data, at both ends, a fingerprint covers."""

Span = tuple[int, int]
"""Place of a field's content in the file: bytes [start, end)."""
Value = int | Span
"""Value of a field: an integer, or where its bytes lie."""
Buffer = mmap.mmap

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Field numbers of onnx.proto, unchanged since 2017.
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSETS, _MODEL_METADATA = 1, 7, 8, 14
_GRAPH_INITIALIZER, _GRAPH_INPUT = 5, 11
_VALUE_NAME, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL = 1, 8, 9, 13
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


@dataclass(frozen=True)
class External:
    """Place of an initializer's external data.

    Attributes:
        location: file, relative to the model's folder.
        offset: first byte in it.
        length: how many bytes; 0 where the graph leaves it open.
    """

    location: str
    offset: int
    length: int


@dataclass
class OnnxFile:
    """Parts of an ONNX model that tell whether it can be loaded.

    Attributes:
        path: the `.onnx` file.
        ir_version: version of ONNX's file format.
        opsets: domain -> version of its operators; the default domain is "".
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
            except (OSError, ValueError) as error:  # ValueError: of a null byte
                raise BaseMismatchError(
                    f"{self.path} keeps weights in {location[:80]!r}, which is no name of a file: {error}"
                ) from None
            if stat.S_ISLNK(found.st_mode):
                raise BaseMismatchError(
                    f"{path} is a symbolic link, which ONNX Runtime refuses for weights: copy the file "
                    "instead"
                )
            if not stat.S_ISREG(found.st_mode):
                raise BaseMismatchError(
                    f"{path}, which holds weights of {self.path.name}, is no regular file: export again"
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
    result = OnnxFile(path)
    with _opened(path) as data:
        _read_model(data, result)
    if not result.inputs:
        raise BaseMismatchError(f"{path} is not a usable ONNX model: it has no graph with inputs")
    return result


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX model file; the graph is skipped.

    Raises:
        BaseMismatchError: the file is not an ONNX model, or is truncated.
        OSError: it cannot be read.
    """
    found: dict[str, str] = {}
    with _opened(path) as data:
        for number, value in fields(data, 0, len(data)):
            if number != _MODEL_METADATA:
                continue
            start, end = span(value)
            if end - start > STRING_BYTES + 2 * KEY_BYTES:
                raise MalformedProtobufError(f"an entry of its metadata has {end - start:,} bytes")
            key, said = _entry(data, value)
            found[key] = said
            _count(found, KEYS, "metadata entries")
    return found


def inline_spans(path: str | PathLike[str]) -> dict[str, Span]:
    """Return initializer -> [start, end) of its raw data in the model file, for those that are inside it.

    Raises:
        BaseMismatchError: the file is not an ONNX model, or is truncated.
        OSError: it cannot be read.
    """
    found: dict[str, Span] = {}
    with _opened(path) as data:
        for number, graph in fields(data, 0, len(data)):
            if number != _MODEL_GRAPH:
                continue
            for inner, tensor in fields(data, *span(graph)):
                if inner == _GRAPH_INITIALIZER:
                    parts = dict(fields(data, *span(tensor)))
                    if _TENSOR_RAW in parts and _TENSOR_NAME in parts:
                        found[text(data, parts[_TENSOR_NAME])] = span(parts[_TENSOR_RAW])
                        _count(found, TENSORS, "initializers")
    return found


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Buffer]:
    try:
        with _mapped(path) as data:
            yield data
    except MalformedProtobufError as error:
        raise BaseMismatchError(f"{path} is not a usable ONNX model: {error}") from None


def _read_model(data: Buffer, result: OnnxFile) -> None:
    for number, value in fields(data, 0, len(data)):
        if number == _MODEL_IR:
            result.ir_version = integer(value)
        elif number == _MODEL_GRAPH:
            _read_graph(data, span(value), result)
        elif number == _MODEL_OPSETS:
            opset = dict(fields(data, *span(value)))
            domain = text(data, opset[_OPSET_DOMAIN]) if _OPSET_DOMAIN in opset else ""
            result.opsets[domain] = integer(opset.get(_OPSET_VERSION, 0))


def _read_graph(data: Buffer, place: Span, result: OnnxFile) -> None:
    for number, value in fields(data, *place):
        if number == _GRAPH_INPUT:
            named = dict(fields(data, *span(value)))
            if _VALUE_NAME in named:
                result.inputs.append(text(data, named[_VALUE_NAME]))
                _count(result.inputs, TENSORS, "inputs")
        elif number == _GRAPH_INITIALIZER:
            name, external = "", {}
            for inner, part in fields(data, *span(value)):
                if inner == _TENSOR_NAME:
                    name = text(data, part)
                elif inner == _TENSOR_EXTERNAL:
                    key, said = _entry(data, part)
                    external[key] = said
            result.initializers[name] = _external(name, external) if external else None
            _count(result.initializers, TENSORS, "initializers")


def _entry(data: Buffer, value: Value) -> tuple[str, str]:
    """Return key and value of a `StringStringEntryProto`."""
    parts = dict(fields(data, *span(value)))
    key, value = (parts.get(number, (0, 0)) for number in (_ENTRY_KEY, _ENTRY_VALUE))
    return text(data, key), text(data, value, STRING_BYTES)


def _count(found: Sized, most: int, what: str) -> None:
    if len(found) > most:
        raise MalformedProtobufError(f"it has more than {most:,} {what}")


def _external(name: str, entries: dict[str, str]) -> External:
    try:
        place = External(
            entries["location"], int(entries.get("offset", "0")), int(entries.get("length", "0"))
        )
    except (KeyError, ValueError):
        place = None
    if place is None or min(place.offset, place.length) < 0:
        raise MalformedProtobufError(f"the external data of {name!r} are described as {entries}")
    return place


class MalformedProtobufError(ValueError):
    """Error of bytes that are no protocol buffer."""


@contextmanager
def _mapped(path: str | PathLike[str]) -> Iterator[Buffer]:
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
