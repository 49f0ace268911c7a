"""A baked ONNX graph as a file: the names that both sides share, and what it says, read without an engine.

The exporter writes these names and a device reads them, so they stand here alone (docs/FORMAT.md, "ONNX
graph"). A device has no package that reads ONNX, and checks a graph before an engine starts: only the
protobuf fields that the checks need are read, tensors are skipped by their length, and a model of any size
costs milliseconds.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from os import PathLike
from pathlib import Path

from ..errors import BaseMismatchError
from ..limits import KEY_BYTES, KEYS, STRING_BYTES, TENSORS
from . import protobuf
from .protobuf import Buffer, Span, Value, fields, integer, span, text

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
                raise protobuf.MalformedProtobufError(f"an entry of its metadata has {end - start:,} bytes")
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
        with protobuf.opened(path) as data:
            yield data
    except protobuf.MalformedProtobufError as error:
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
        raise protobuf.MalformedProtobufError(f"it has more than {most:,} {what}")


def _external(name: str, entries: dict[str, str]) -> External:
    try:
        place = External(
            entries["location"], int(entries.get("offset", "0")), int(entries.get("length", "0"))
        )
    except (KeyError, ValueError):
        place = None
    if place is None or min(place.offset, place.length) < 0:
        raise protobuf.MalformedProtobufError(f"the external data of {name!r} are described as {entries}")
    return place
