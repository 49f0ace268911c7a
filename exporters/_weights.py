"""Where weights come from: a GGUF file, or a Hugging Face directory of safetensors."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

from .._gguf import MalformedGGUFError
from .._gguf_split import open_gguf
from ..errors import ExportError, UnsupportedModelError
from ..factorization import RowSource
from ..modules import is_adaptable
from ._dequantize import FLOAT_BYTES, PackedRows, float_decoder, ggml_decoder

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


class Weights(Protocol):
    """The weights of a model, by module."""

    kind: str
    """`gguf` or `hf`: recorded in the manifest."""

    def matrices(self, module: str) -> list[RowSource]:
        """Return the module's weight: one matrix, or one an expert.

        Raises:
            ExportError: the tensor is missing or cannot be read.
        """


class GGUFWeights:
    """The weights of a GGUF model, whole or split, every type that ggml or `gguf.quants` reads.

    Raises:
        ExportError: the file cannot be read, or is no GGUF model.
        UnsupportedModelError: its architecture is unknown, or no tensor of it can be adapted.
    """

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        try:
            self.file = open_gguf(path)
        except MalformedGGUFError as error:
            raise ExportError(f"{path} is not a usable GGUF model: {error}") from None
        except OSError as error:
            raise ExportError(f"{path} cannot be read: {error.strerror or error}") from None
        kind = self.file.get("general.type", "model")
        if kind != "model":
            raise ExportError(f"{path} holds a {kind!r}, not a model: pass the base model")
        if self.file.architecture not in gguf.MODEL_ARCH_NAMES.values():
            raise UnsupportedModelError(
                f"{path} has architecture {self.file.architecture!r}, which the installed gguf package "
                f"{_version('gguf')} does not know"
            )
        self.modules = [
            name
            for name, tensor in self.file.tensors.items()
            if is_adaptable(name) and len(tensor.shape) >= 2
        ]
        if not self.modules:
            some = ", ".join(list(self.file.tensors)[:4])
            raise UnsupportedModelError(
                f"{path} has no linear layers that can be adapted: none of its {len(self.file.tensors)} "
                f"tensors ({some}, ...) is named like 'blk.0.attn_q.weight'"
            )

    def matrices(self, module: str) -> list[RowSource]:
        """Return the module's weight: one matrix, or one an expert."""
        tensor = self.file.tensors.get(module)
        if tensor is None:
            raise ExportError(f"the GGUF has no tensor {module}")
        n_out, n_in = tensor.shape[-2:]
        raw = self.file.data(tensor).reshape(-1, n_out, tensor.row_bytes)
        try:
            decode = ggml_decoder(tensor.type, raw[0])
        except NotImplementedError:
            raise UnsupportedModelError(
                f"{module} has type {tensor.type.name}, which neither llama-cpp-python nor gguf can read"
            ) from None
        return [PackedRows(expert, n_in, decode) for expert in raw]


class HFWeights:
    """The weights of a Hugging Face directory, named by the modules of a GGUF architecture.

    Args:
        directory: with `model.safetensors`, or shards and `model.safetensors.index.json`.
        architecture: of the GGUF that is deployed.
        blocks: its number of blocks.

    Raises:
        ExportError: files are missing or damaged.
    """

    kind = "hf"

    def __init__(self, directory: Path, architecture: str, blocks: int) -> None:
        self._directory = directory
        arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
        names = gguf.get_tensor_name_map(arch, blocks)
        self._tensors: dict[str, _Stored] = {}
        for path in _shards(directory):
            for name, stored in _read_safetensors(path).items():
                module = names.get_name(name, try_suffixes=(".weight",))
                if module is not None and is_adaptable(module):
                    self._tensors[module] = stored
        if not self._tensors:
            raise UnsupportedModelError(
                f"no tensor of {directory} maps to a module of architecture {architecture!r}: "
                "is the deployed GGUF made from this model?"
            )
        self.modules = list(self._tensors)

    def nbytes(self, module: str) -> int:
        """Bytes of a module's weight as it is stored."""
        return self._tensors[module].nbytes

    def matrices(self, module: str) -> list[RowSource]:
        """Return the module's weight: one matrix."""
        stored = self._tensors.get(module)
        if stored is None:
            raise ExportError(
                f"{self._directory} has no tensor for {module}, which the deployed GGUF has; the modules "
                f"found go from {min(self._tensors)} to {max(self._tensors)}. Leave it out with --targets, "
                "or export from the GGUF alone"
            )
        return [stored.rows(module)]


class _Stored:
    """One tensor of a safetensors file, memory-mapped."""

    def __init__(self, path: Path, dtype: str, shape: Sequence[int], data: NDArray[np.uint8]) -> None:
        self.dtype = dtype
        self._path, self._dtype, self._shape, self._data = path, dtype, tuple(shape), data
        self.nbytes = data.size

    def rows(self, module: str) -> RowSource:
        decode = float_decoder(self._dtype)
        if decode is None or len(self._shape) != 2:
            raise UnsupportedModelError(
                f"{module} is stored in {self._path.name} as {self._dtype} of shape {self._shape}: "
                "expected a matrix of floats; for quantized checkpoints export from the GGUF"
            )
        row_bytes = self._shape[1] * FLOAT_BYTES[self._dtype]
        if self._shape[0] * row_bytes != self._data.size:
            raise ExportError(
                f"{self._path} is damaged: {module} has {self._data.size} bytes, but shape {self._shape} "
                f"in {self._dtype} takes {self._shape[0] * row_bytes}"
            )
        return PackedRows(self._data.reshape(self._shape[0], -1), self._shape[1], decode)

    def array(self, name: str) -> NDArray[np.float32]:
        """Return the whole tensor as float32, whatever its shape."""
        decode = float_decoder(self._dtype)
        if decode is None or self._data.size != math.prod(self._shape) * FLOAT_BYTES[self._dtype]:
            raise ExportError(
                f"{name} in {self._path} has {self._data.size} bytes in {self._dtype} of shape "
                f"{self._shape}: expected floats, as many as the shape says"
            )
        return decode(self._data.reshape(1, -1)).reshape(self._shape)


def _shards(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            if not names or not all(isinstance(name, str) for name in names):
                raise ValueError("its weight_map names no files")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{index} is not a safetensors index: {error!r}") from None
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise ExportError(
            f"{directory} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more of {len(names)} shards" if len(missing) > 1 else "")
            + ": expected a Hugging Face model directory with safetensors; download it again"
        )
    return [directory / name for name in names]


def _read_safetensors(path: Path) -> dict[str, _Stored]:
    """Parse a safetensors file without copying its data.

    The safetensors package reads neither bfloat16 nor float8 without torch, which an exporter must not
    need. Format: https://huggingface.co/docs/safetensors, "Format".
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        if size < 8:
            raise ExportError(f"{path} is not a safetensors file: it has {size} bytes")
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (length,) = struct.unpack_from("<Q", buffer, 0)
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise ExportError(f"{path} is damaged: it declares a header of {length} bytes, but has {size} bytes")
    try:
        header: dict[str, Any] = json.loads(buffer[8 : 8 + length])
        header.pop("__metadata__", None)
        entries = [(n, e["dtype"], e["shape"], *e["data_offsets"]) for n, e in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is damaged: its header cannot be read ({error!r})") from None
    _refuse_scaled(path, header)
    start = 8 + length
    result = {}
    for name, dtype, shape, begin, end in entries:
        numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ExportError(f"{path} is damaged: {name} has shape {shape!r} at bytes {begin!r} to {end!r}")
        if not 0 <= begin <= end <= size - start:
            raise ExportError(
                f"{path} is truncated: {name} lies at bytes {begin} to {end}, but there are {size - start}"
            )
        result[name] = _Stored(
            path, dtype, shape, np.frombuffer(buffer, np.uint8, end - begin, start + begin)
        )
    return result


def _refuse_scaled(path: Path, header: dict[str, Any]) -> None:
    scaled = next((n for n in header if n.endswith(("weight_scale_inv", "weight_scale"))), None)
    if scaled is not None:
        raise UnsupportedModelError(
            f"{path} holds scaled low-precision weights ({scaled}): export from the deployed GGUF instead"
        )


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
