"""A baked ONNX graph as a file: the names that both sides share, and what it says, read without an engine.

The exporter writes these names and a device reads them, so they stand here alone (docs/FORMAT.md, "ONNX
graphs"). A device has no package that reads ONNX, and checks a graph before an engine starts: only the
fields that the checks need are read, tensors are skipped by their length, and a model of any size costs
milliseconds. Wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BaseMismatchError
from ..limits import DOCUMENT_BYTES, ENTRIES, NAME_BYTES

MODEL_NAME, GENAI_NAME = "model.onnx", "genai_config.json"
"""File names in a bundle's ONNX folder: the graph, and onnxruntime-genai's configuration."""

INPUT_NAME = "tinylora_r"
"""Name of the graph input that takes R: float32 [rows, M r^2], one row or one for each sequence."""

DEFAULT, REQUIRED = "default", "required"
"""Flavours of that input: with an initializer of zeros, and without."""


VERSION = "2"
"""Of what this module names."""


class MetadataKey(StrEnum):
    """A key of the `metadata_props` that a baked graph carries; the values are strings."""

    VERSION = "tinylora.version"
    FACTORS = "tinylora.factors"
    FINGERPRINT = "tinylora.fingerprint"
    ARCHITECTURE = "tinylora.architecture"
    RANK = "tinylora.rank"
    FACTORIZATION = "tinylora.factorization"
    MODULES = "tinylora.modules"
    FLAVOUR = "tinylora.flavour"
    WEIGHTS = "tinylora.weights"


def input_row(r: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """Return R, float32 [M, k, k], as a row of the input of a graph of rank r: [M r^2], zeros beyond k."""
    count, k, _ = r.shape
    row = np.zeros((count, rank, rank), np.float32)
    row[:, :k, :k] = r
    return row.reshape(-1)


FINGERPRINT_MARK = b"tinylora onnx 1\n"
"""What a fingerprint of a graph's weights begins with."""
EDGE_BYTES = 4096
"""How many bytes of each tensor's data, at both ends, a fingerprint covers."""

Span = tuple[int, int]
"""Place of a field's content in the file: bytes [start, end)."""
Value = int | Span
"""Value of a field: an integer, or where its bytes lie."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Field numbers of onnx.proto, unchanged since 2017.
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSETS, _MODEL_METADATA = 1, 7, 8, 14
_GRAPH_INITIALIZER, _GRAPH_INPUT = 5, 11
_VALUE_NAME, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL = 1, 8, 9, 13
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


@dataclass(frozen=True)
class Place:
    """Where an initializer's bytes lie, in a file relative to the model's folder ("" for the model's own).

    A length of 0 is one that the graph leaves open.
    """

    location: str
    offset: int
    length: int


@dataclass
class OnnxFile:
    """Parts of an ONNX model that tell whether it can be loaded.

    `initializers` names where the bytes of each lie, or None where they are in typed fields.
    """

    path: Path
    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    initializers: dict[str, Place | None] = field(default_factory=dict)

    @property
    def data_files(self) -> list[str]:
        """Names of the files of external data, sorted."""
        return sorted({place.location for place in self.initializers.values() if place and place.location})

    def check_data(self) -> None:
        """Check that every file of external data is there, whole, and one that ONNX Runtime accepts.

        Raises:
            BaseMismatchError: a file is missing, too short, a symbolic link, or outside the model's folder.
        """
        ends: dict[str, int] = {}
        for place in self.initializers.values():
            if place and place.location:
                ends[place.location] = max(ends.get(place.location, 0), place.offset + place.length)
        for location, end in ends.items():
            self._check_file(location, end)

    def _check_file(self, location: str, end: int) -> None:
        where, said = Path(location), f"{self.path} keeps weights in {location[:80]!r}"
        if where.is_absolute() or ".." in where.parts:
            raise BaseMismatchError(f"{said}, outside its folder, which ONNX Runtime refuses")
        path = self.path.parent / where
        try:
            found = path.lstat()
        except FileNotFoundError:
            raise BaseMismatchError(
                f"{path}, which holds weights of {self.path.name}, does not exist: copy it there, or export "
                "again"
            ) from None
        except (OSError, ValueError) as error:  # ValueError: of a null byte
            raise BaseMismatchError(f"{said}, which is no name of a file: {error}") from None
        if stat.S_ISLNK(found.st_mode):
            raise BaseMismatchError(
                f"{path} is a symbolic link, which ONNX Runtime refuses for weights: copy the file instead"
            )
        if not stat.S_ISREG(found.st_mode):
            raise BaseMismatchError(f"{said}, which is no regular file: export again")
        if found.st_size < end:
            raise BaseMismatchError(
                f"{path} has {found.st_size:,} bytes, but {self.path.name} needs {end:,}: it was cut on "
                "its way; copy it again"
            )


def read_onnx(path: Path) -> OnnxFile:
    """Read what an ONNX file says about itself.

    Raises:
        BaseMismatchError: it is not an ONNX model, or damaged.
        OSError: it cannot be read.
    """
    result = OnnxFile(path)
    try:
        with open(path, "rb") as file:
            if file.seek(0, 2) == 0:
                raise MalformedProtobufError("it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _read_model(data, result)
    except MalformedProtobufError as error:
        raise BaseMismatchError(f"{path} is not a usable ONNX model: {error}") from None
    if not result.inputs:
        raise BaseMismatchError(f"{path} is not a usable ONNX model: it has no graph with inputs")
    return result


def _read_model(data: mmap.mmap, result: OnnxFile) -> None:
    for number, value in _fields(data, 0, len(data)):
        if number == _MODEL_IR:
            result.ir_version = _integer(value)
        elif number == _MODEL_GRAPH:
            _read_graph(data, _span(value), result)
        elif number == _MODEL_OPSETS:
            opset = dict(_fields(data, *_span(value)))
            domain = _text(data, opset[_OPSET_DOMAIN]) if _OPSET_DOMAIN in opset else ""
            result.opsets[domain] = _integer(opset.get(_OPSET_VERSION, 0))
        elif number == _MODEL_METADATA:
            key, said = _entry(data, value)
            result.metadata[key] = said


def _read_graph(data: mmap.mmap, place: Span, result: OnnxFile) -> None:
    for number, value in _fields(data, *place):
        if number == _GRAPH_INPUT:
            named = dict(_fields(data, *_span(value)))
            if _VALUE_NAME in named:
                result.inputs.append(_text(data, named[_VALUE_NAME]))
        elif number == _GRAPH_INITIALIZER:
            name, raw, external = "", None, {}
            for inner, part in _fields(data, *_span(value)):
                if inner == _TENSOR_NAME:
                    name = _text(data, part)
                elif inner == _TENSOR_RAW:
                    start, end = _span(part)
                    raw = Place("", start, end - start)
                elif inner == _TENSOR_EXTERNAL:
                    key, said = _entry(data, part)
                    external[key] = said
            result.initializers[name] = _external(name, external) if external else raw


def _entry(data: mmap.mmap, value: Value) -> tuple[str, str]:
    """Return key and value of a `StringStringEntryProto`."""
    start, end = _span(value)
    if end - start > DOCUMENT_BYTES + 2 * NAME_BYTES:
        raise MalformedProtobufError(f"an entry of its metadata has {end - start:,} bytes")
    parts = dict(_fields(data, start, end))
    key, value = (parts.get(number, (0, 0)) for number in (_ENTRY_KEY, _ENTRY_VALUE))
    return _text(data, key), _text(data, value, DOCUMENT_BYTES)


def _external(name: str, entries: dict[str, str]) -> Place:
    try:
        place = Place(entries["location"], int(entries.get("offset", "0")), int(entries.get("length", "0")))
    except (KeyError, ValueError):
        place = None
    if place is None or not place.location or min(place.offset, place.length) < 0:
        raise MalformedProtobufError(f"the external data of {name!r} are described as {entries}")
    return place


class MalformedProtobufError(ValueError):
    """Error of bytes that are no protocol buffer."""


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, Value]]:
    """Yield number and value of the fields of the message in [start, end)."""
    position, left = start, ENTRIES
    while position < end:
        if not left:
            raise MalformedProtobufError(f"a message has more than {ENTRIES:,} fields")
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


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise MalformedProtobufError("an integer is expected where bytes are")
    return value


def _span(value: Value) -> Span:
    if isinstance(value, int):
        raise MalformedProtobufError("bytes are expected where an integer is")
    return value


def _text(data: mmap.mmap, value: Value, most: int = NAME_BYTES) -> str:
    """Return a string field's value, of so many bytes at most."""
    start, end = _span(value)
    if end - start > most:
        raise MalformedProtobufError(f"a name or a text has {end - start:,} bytes: at most {most:,} are read")
    try:
        return data[start:end].decode()
    except UnicodeDecodeError:
        raise MalformedProtobufError("a text is not UTF-8") from None


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
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
