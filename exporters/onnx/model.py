"""The border to ONNX files: a graph without its external data, ranges of that data, and copies of it.

A model's weights lie outside its protocol buffer as a rule, and may be larger than memory. They are never
loaded: what is looked at is mapped, and what is kept is copied by the file system.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ExportError, MissingExtraError, UnsupportedModelError
from ...formats.onnx_graph import GENAI_NAME, MODEL_NAME
from ...limits import DIMENSIONS, TOKENIZER_BYTES
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
"""Names of the files that engines and readers of a bundle need beside a graph (docs/ONNX.md)."""


class OnnxModel:
    """An ONNX model file whose external data stays where it is.

    Args:
        path: the model file.

    Raises:
        MissingExtraError: the onnx package is not installed.
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
        self._check_versions(onnx)
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in self.graph.initializer}
        self.data_files = self._check_data()

    def _check_versions(self, onnx: Any) -> None:
        found = {item.domain: item.version for item in self.proto.opset_import}
        opset, newest = found.get("", 0) or found.get("ai.onnx", 0), onnx.defs.onnx_opset_version()
        if not MIN_OPSET <= opset <= newest:
            raise UnsupportedModelError(
                f"{self.path} has opset {opset}: opsets from {MIN_OPSET} to {newest} can be baked with the "
                f"installed onnx {onnx.__version__}. Convert it with onnx.version_converter"
            )
        ir = self.proto.ir_version
        if not MIN_IR <= ir <= onnx.IR_VERSION:
            raise UnsupportedModelError(
                f"{self.path} has IR version {ir}: versions from {MIN_IR} to {onnx.IR_VERSION} can be baked "
                f"with the installed onnx {onnx.__version__}"
            )

    def _check_data(self) -> dict[str, Path]:
        """Return location -> file of the external data, every tensor having the bytes of its shape."""
        files: dict[str, Path] = {}
        ends: dict[str, tuple[int, str]] = {}
        for tensor in _all_tensors(self.graph):
            length, expected = None, nbytes(tensor)
            if tensor.data_location == tensor.EXTERNAL:
                location, offset, length = external_range(tensor)
                if location not in files:
                    files[location] = self._resolve(location, tensor.name)
                ends[location] = max(ends.get(location, (0, "")), (offset + expected, tensor.name))
            elif tensor.HasField("raw_data"):
                length = len(tensor.raw_data)
            if length not in (None, expected):
                raise ExportError(
                    f"{self.path} is damaged: {tensor.name} has {length:,} bytes, but its type and its shape "
                    f"{list(tensor.dims)} ask for {expected:,}. Download or export the model again"
                )
        for location, (end, name) in ends.items():
            size = files[location].stat().st_size
            if size < end:
                raise ExportError(
                    f"{files[location]} is truncated: {name} ends at byte {end:,}, but the file has {size:,}"
                    ". Download or export the model again"
                )
        return files

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
        except OSError as error:  # such as a name that is longer than the file system's
            raise ExportError(
                f"{self.path} keeps weights in {location[:80]!r}, which is no name of a file: "
                f"{error.strerror}"
            ) from None
        if not found:
            raise ExportError(
                f"{path} is missing: {self.path.name} keeps its weights there ({name}, for one). Put it "
                "beside the model, or download the model again"
            )
        return path

    @contextmanager
    def data(self, tensor: TensorProto) -> Iterator[NDArray[np.uint8]]:
        """Give the bytes of a tensor as a read-only uint8 view, mapped where they are external.

        The view is valid inside the block alone: what was mapped is released after it, so that looking
        at every weight in turn never holds more than one.
        """
        if tensor.data_location != tensor.EXTERNAL:
            yield _inline_bytes(tensor)
            return
        location, offset, _ = external_range(tensor)
        size = nbytes(tensor)
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        if size == 0:
            yield np.empty(0, np.uint8)
            return
        with open(self.data_files[location], "rb") as file:
            mapped = mmap.mmap(file.fileno(), offset - start + size, access=mmap.ACCESS_READ, offset=start)
        view = np.frombuffer(mapped, np.uint8, size, offset - start)
        try:
            yield view
        finally:
            del view  # the map itself goes with the last view on it

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
        names = ", ".join(item.name for item in found) or "none"
        raise ExportError(
            f"{path} has no {MODEL_NAME}, and {names} of its files to choose from: pass the model file itself"
            if found
            else f"{path} has no ONNX model in it: expected {MODEL_NAME}"
        )
    return found[0]


def external_range(tensor: TensorProto) -> tuple[str, int, int | None]:
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
    if len(tensor.dims) > DIMENSIONS or any(dim < 0 for dim in tensor.dims):
        raise ExportError(
            f"{tensor.name} has the shape {list(tensor.dims)[: DIMENSIONS + 1]}: expected at most "
            f"{DIMENSIONS} dimensions, none below 0. Download or export the model again"
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
    for item in node.attribute:
        if item.name == name:
            return import_onnx().helper.get_attribute_value(item)
    return default


def _all_tensors(graph: Any) -> Iterator[TensorProto]:
    """Initializers and constants of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for item in node.attribute:
            if item.HasField("t"):
                yield item.t
            yield from item.tensors
            for inner in (*([item.g] if item.HasField("g") else []), *item.graphs):
                yield from _all_tensors(inner)


def _inline_bytes(tensor: TensorProto) -> NDArray[np.uint8]:
    if tensor.HasField("raw_data"):
        return np.frombuffer(tensor.raw_data, np.uint8)
    try:
        array = import_onnx().numpy_helper.to_array(tensor)
    except ValueError as error:  # more values, or fewer, than the shape has
        raise ExportError(f"{tensor.name} is damaged: {error}. Download or export the model again") from None
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
