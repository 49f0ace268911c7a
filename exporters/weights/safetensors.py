"""Safetensors files: tensors read where they lie, memory-mapped, as matrices of a model's layers.

The safetensors package checks the files. It hands out no bfloat16 without torch, which an exporter must not
need, so the tensors are mapped and decoded here.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ExportError, MissingExtraError, UnsupportedModelError
from ...factorization import RowSource
from ...jsonio import read_json
from .dequantize import FLOAT_BYTES, PackedRows, float_decoder

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_SCALED = ("weight_scale_inv", "weight_scale", "qweight", "weight_packed", "absmax", "quant_state")
"""Endings of what comes with weights of FP8, GPTQ, AWQ, compressed-tensors and bitsandbytes."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: its type and shape as stated, its bytes memory-mapped."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.data.size

    def matrix(self, module: str) -> RowSource:
        """Return the tensor of a module as a matrix [out, in]."""
        decode = float_decoder(self.dtype)
        if decode is None or len(self.shape) != 2 or 0 in self.shape:
            raise UnsupportedModelError(
                f"{module} is stored in {self.path.name} as {self.dtype} of shape {self.shape}: expected a "
                "matrix of floats; for quantized checkpoints export from the GGUF"
            )
        rows, columns = self.shape
        return PackedRows(self.data.reshape(rows, columns * FLOAT_BYTES[self.dtype]), columns, decode)


def shard_names(directory: Path) -> list[str]:
    """Return the names of a Hugging Face directory's safetensors files, in order, there or not."""
    index = directory / INDEX
    if not index.exists():
        return [SINGLE]
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        if not names or not all(name == Path(name).name and "\0" not in name for name in names):
            raise ValueError("its weight_map names no files of this folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{index} is not a safetensors index: {error!r}") from None
    return names


def shards(directory: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face directory, in order of their names."""
    names, here = shard_names(directory), set(os.listdir(directory))
    missing = [name for name in names if name not in here]
    if missing:
        raise ExportError(
            f"{directory} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more of {len(names)} shards" if len(missing) > 1 else "")
            + ": expected a Hugging Face model directory with safetensors; download it again"
        )
    return [directory / name for name in names]


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, without copying its data.

    Raises:
        MissingExtraError: the safetensors package is not installed.
        ExportError: the file is damaged.
        UnsupportedModelError: it holds quantized weights.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise MissingExtraError("reading a Hugging Face directory", "safetensors", "export") from None
    try:
        with safe_open(path, framework="numpy"), open(path, "rb") as file:  # which checks all that is used
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{path} is damaged, or no safetensors file: {error}") from None
    start = 8 + int.from_bytes(buffer[:8], "little")
    header = json.loads(buffer[8:start])
    header.pop("__metadata__", None)
    if (scaled := next((name for name in header if name.endswith(_SCALED)), None)) is not None:
        raise UnsupportedModelError(
            f"{path} holds quantized weights ({scaled}), which are not read here: export from the deployed "
            "GGUF instead"
        )
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = np.frombuffer(buffer, np.uint8, end - begin, start + begin)
        found[name] = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), data)
    return found
