"""The border to ONNX files: a graph without its external data, the bytes of its tensors, and copies of both.

A model's weights lie outside its protocol buffer as a rule, and may be larger than memory. They are never
loaded: what is looked at is mapped, and what is kept is copied by the file system.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ExportError, MissingExtraError, UnsupportedModelError
from ...formats.onnx_graph import GENAI_NAME, MODEL_NAME
from ...limits import TOKENIZER_BYTES
from ...system import atomic_write
from ..bundle_writer import copy_file

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

MIN_OPSET = 13
"""Since then Split and Unsqueeze take their sizes and axes as inputs."""
MIN_IR = 4
"""Since then an initializer may be there without an input, so that one with an input is a default."""
MAX_INLINE_BYTES = 1_900_000_000  # protocol buffers end at 2 GiB
_PACKED_BITS = {
    "INT2": 2,
    "UINT2": 2,
    "INT4": 4,
    "UINT4": 4,
    "FLOAT4E2M1": 4,
    "FLOAT6E2M3": 6,
    "FLOAT6E3M2": 6,
}
"""Bits of a value, by the element types that share bytes."""
_BESIDE = (
    *(GENAI_NAME, "config.json", "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("preprocessor_config.json", "processor_config.json"),
    *("LICENSE*", "NOTICE*"),
)
"""Names of the files that engines and readers of a bundle need beside a graph."""


class OnnxModel:
    """An ONNX model file whose external data stays where it is.

    Raises:
        ExportError: the file, or the data that it refers to, is missing, damaged or outside its folder.
        UnsupportedModelError: it is of an opset or IR version that cannot be extended.
    """

    def __init__(self, path: Path) -> None:
        onnx = import_onnx()
        self.path, self.folder = path, path.parent
        try:
            self.proto: ModelProto = onnx.load_model(str(path), load_external_data=False)
        except OSError as error:
            raise ExportError(f"{path} cannot be read: {error.strerror or error}") from None
        except Exception as error:  # protobuf's DecodeError, whose class differs between its backends
            raise ExportError(f"{path} is not an ONNX model: {error}") from None
        self.graph = self.proto.graph
        if not self.graph.node:
            raise ExportError(f"{path} is not an ONNX model: it has no nodes")
        domains = {item.domain: item.version for item in self.proto.opset_import}
        opset, newest = domains.get("", 0) or domains.get("ai.onnx", 0), onnx.defs.onnx_opset_version()
        ir = self.proto.ir_version
        if not (MIN_OPSET <= opset <= newest and MIN_IR <= ir <= onnx.IR_VERSION):
            raise UnsupportedModelError(
                f"{path} has opset {opset} and IR version {ir}: opsets from {MIN_OPSET} to {newest} and IR "
                f"versions from {MIN_IR} to {onnx.IR_VERSION} can be baked with the installed onnx "
                f"{onnx.__version__}. Convert it with onnx.version_converter"
            )
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in self.graph.initializer}
        self.data_files: dict[str, Path] = {}  # location -> file of the external data
        for tensor in _all_tensors(self.graph):
            self._check(tensor)

    def _check(self, tensor: TensorProto) -> None:
        """Check that a tensor has the bytes of its shape; values in typed fields become bytes."""
        expected, what = nbytes(tensor), f"{tensor.name} of {self.path}"
        if tensor.data_location == tensor.EXTERNAL:
            location, offset, found = _external_range(tensor)
            if location not in self.data_files:
                self.data_files[location] = self._resolve(location, tensor.name)
            size = self.data_files[location].stat().st_size
            if size < offset + expected:
                raise ExportError(
                    f"{self.data_files[location]} is truncated: {tensor.name} ends at byte "
                    f"{offset + expected:,}, but the file has {size:,}. Download or export the model again"
                )
        else:
            if not tensor.HasField("raw_data") and tensor.data_type != tensor.STRING:
                numpy_helper = import_onnx().numpy_helper
                try:
                    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
                except ValueError as error:  # more values, or fewer, than the shape has
                    raise ExportError(
                        f"{what} is damaged: {error}. Download or export the model again"
                    ) from None
            found = len(tensor.raw_data) if tensor.HasField("raw_data") else None
        if found not in (None, expected):
            raise ExportError(
                f"{what} is damaged: it has {found:,} bytes, but its type and its shape {list(tensor.dims)} "
                f"ask for {expected:,}. Download or export the model again"
            )

    def _resolve(self, location: str, name: str) -> Path:
        plain = Path(location)
        if not location or plain.is_absolute() or ".." in plain.parts:
            raise ExportError(
                f"{self.path} refers to external data at {location!r} for {name}: expected a file inside "
                f"{self.folder}, which alone can be copied into a bundle"
            )
        path = self.folder / plain
        try:
            found = path.is_file()
        except OSError:  # a name that is longer than the file system's
            found = False
        if not found:
            raise ExportError(
                f"{self.path} keeps weights ({name}, for one) in {location[:80]!r}, and no such file is "
                "beside it: put it there, or download the model again"
            )
        return path

    def data(self, tensor: TensorProto) -> NDArray[np.uint8]:
        """The bytes of a tensor: uint8, read-only, mapped where they are external; copy what you keep."""
        if tensor.data_location != tensor.EXTERNAL:
            return np.frombuffer(tensor.raw_data, np.uint8)
        location, offset, _ = _external_range(tensor)
        size = nbytes(tensor)
        if size == 0:
            return np.empty(0, np.uint8)
        return np.memmap(self.data_files[location], np.uint8, "r", offset, (size,))

    def copy_data(self, folder: Path, *, move: bool = False) -> None:
        """Put the external data into another folder, as files of its own even where links were here."""
        for location, source in self.data_files.items():
            target = folder / location
            target.parent.mkdir(parents=True, exist_ok=True)
            if move:
                os.rename(source, target)
            else:
                copy_file(source.resolve(), target)

    def save(self, path: Path) -> None:
        """Write the protocol buffer, atomically."""
        if (size := self.proto.ByteSize()) > MAX_INLINE_BYTES:
            raise UnsupportedModelError(
                f"the graph would take {size:,} bytes with the factors in it, more than the 2 GiB that an "
                "ONNX file can hold: choose a smaller rank, or fewer modules with --targets"
            )
        with atomic_write(path) as file:
            file.write(self.proto.SerializeToString())


def import_onnx() -> Any:
    """Return the onnx package."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise MissingExtraError("exporting to ONNX", "onnx", "onnx-export") from None
    return onnx


def find_model(path: Path) -> Path:
    """Return the model file of an ONNX directory, or of a path to the file itself."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ExportError(f"{path} does not exist: pass a directory with an ONNX model, or the model file")
    if (path / MODEL_NAME).exists():
        return path / MODEL_NAME
    found = sorted(path.glob("*.onnx"))
    if len(found) != 1:
        names = ", ".join(item.name for item in found) or "no .onnx file"
        raise ExportError(f"{path} has no {MODEL_NAME}, but {names}: pass the model file itself")
    return found[0]


def _external_range(tensor: TensorProto) -> tuple[str, int, int | None]:
    """Return (location, offset, length or None) of a tensor's external data."""
    entries = {item.key: item.value for item in tensor.external_data}
    try:
        offset, length = int(entries.get("offset", 0)), entries.get("length")
        size = None if length is None else int(length)
        if offset < 0 or (size is not None and size < 0):
            raise ValueError
    except ValueError:
        raise ExportError(
            f"the external data of {tensor.name} has a range that is no range: {entries}"
        ) from None
    return entries.get("location", ""), offset, size


def nbytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's values as ONNX stores them raw; types under a byte are packed."""
    onnx = import_onnx()
    if len(tensor.dims) > 8 or any(dim < 0 for dim in tensor.dims):
        raise ExportError(
            f"{tensor.name} has the shape {list(tensor.dims)[:9]}: expected at most "
            "8 dimensions, none below 0. Download or export the model again"
        )
    try:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        unpacked = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError):
        raise ExportError(
            f"{tensor.name} has element type {tensor.data_type}, which the installed onnx {onnx.__version__} "
            "does not know. Download or export the model again, or install a later onnx"
        ) from None
    bits: int = _PACKED_BITS.get(kind, unpacked)
    return (int(math.prod(tensor.dims)) * bits + 7) // 8


def copy_folder(source: Path, target: Path, *, without: set[Path]) -> None:
    """Copy the small files beside a model by name: tokenizer, configuration, licence. Links are followed.

    A bundle is published: whatever else lies in the folder, keys for one, stays there.
    """
    for path in sorted(source.iterdir()):
        known = path not in without and any(fnmatchcase(path.name, pattern) for pattern in _BESIDE)
        if known and path.is_file() and path.stat().st_size <= TOKENIZER_BYTES:
            shutil.copyfile(path, target / path.name)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute."""
    found = (item for item in node.attribute if item.name == name)
    return next((import_onnx().helper.get_attribute_value(item) for item in found), default)


def inner_graphs(item: Any) -> list[Any]:
    """Return the graphs in an attribute of a node."""
    return [*([item.g] if item.HasField("g") else []), *item.graphs]


def _all_tensors(graph: Any) -> Iterator[TensorProto]:
    """Initializers and constants of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for item in node.attribute:
            if item.HasField("t"):
                yield item.t
            yield from item.tensors
            for inner in inner_graphs(item):
                yield from _all_tensors(inner)
