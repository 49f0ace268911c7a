"""What an ONNX graph takes and where its weights lie, read without an engine: milliseconds.

Only the protobuf fields that the checks before a load need; tensors are skipped by their length.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BaseMismatchError
from . import protobuf
from .protobuf import Buffer, Span, entry, fields, integer, span, text

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
    result = OnnxFile(path)
    try:
        with protobuf.opened(path) as data:
            _read_model(data, result)
    except protobuf.MalformedProtobufError as error:
        raise BaseMismatchError(f"{path} is not a usable ONNX model: {error}") from None
    if not result.inputs:
        raise BaseMismatchError(f"{path} is not a usable ONNX model: it has no graph with inputs")
    return result


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
        elif number == _GRAPH_INITIALIZER:
            name, external = "", {}
            for inner, part in fields(data, *span(value)):
                if inner == _TENSOR_NAME:
                    name = text(data, part)
                elif inner == _TENSOR_EXTERNAL:
                    key, said = entry(data, part)
                    external[key] = said
            result.initializers[name] = _external(name, external) if external else None


def _external(name: str, entries: dict[str, str]) -> External:
    try:
        return External(entries["location"], int(entries.get("offset", "0")), int(entries.get("length", "0")))
    except (KeyError, ValueError):
        raise protobuf.MalformedProtobufError(
            f"the external data of {name!r} are described as {entries}"
        ) from None
