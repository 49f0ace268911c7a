"""A Hugging Face directory: its configuration, and its weights under the names of a GGUF architecture.

Checkpoints store experts in many ways, so experts are read from a GGUF alone. The safetensors package checks
the files. It returns no bfloat16 without torch, which an export must not need, so tensors are memory-mapped
and decoded here.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tinylora_edge.errors import ExportError, MissingExtraError, UnsupportedModelError
from tinylora_edge.formats.gguf_transformers import layer_names
from tinylora_edge.jsonio import read_json
from tinylora_edge.limits import BLOCKS
from tinylora_edge.modules import KINDS, find_architecture, is_adaptable, parse, read_heads
from tinylora_edge.writes import open_file

from .dequantize import FLOAT_BYTES, Matrix, float_decoder

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_SCALED = ("weight_scale_inv", "weight_scale", "qweight", "weight_packed", "absmax", "quant_state")
"""Endings of tensors that FP8, GPTQ, AWQ, compressed-tensors and bitsandbytes store with a weight."""


class HFConfig:
    """The `config.json` of a Hugging Face directory: blocks, heads, and the architecture that a GGUF has."""

    def __init__(self, directory: Path) -> None:
        path = directory / "config.json"
        try:
            values: dict[str, Any] = read_json(path)
            model_type = values["model_type"]
            self.blocks = int(values["num_hidden_layers"])
            if not isinstance(model_type, str) or not 1 <= self.blocks <= BLOCKS:
                raise ValueError(f"model_type {model_type!r}, {self.blocks} layers")
        except FileNotFoundError:
            raise ExportError(
                f"{directory} lacks config.json: expected a Hugging Face model directory, or a .gguf file"
            ) from None
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ExportError(f"{path} is not the configuration of a decoder: {error!r}") from None
        self.heads = read_heads(values.get)
        architecture = find_architecture(model_type, set(gguf.MODEL_ARCH_NAMES.values()))
        if architecture is None:
            raise UnsupportedModelError(
                f"{path} has model_type {model_type!r}, for which no GGUF architecture is known: "
                "convert the model with convert_hf_to_gguf.py and export from the GGUF"
            )
        self.architecture = architecture


class HFWeights:
    """The weights of a Hugging Face directory, named by the modules of a GGUF architecture of so many blocks.

    Attributes:
        modules: the dense linear layers of attention and feed-forward networks: what every engine adapts.
        layers: module -> (name of its layer, such as `model.layers.0.self_attn.q_proj`, its shape).

    ExportError: files are missing or damaged. UnsupportedModelError: no tensor maps to a module, or the
    checkpoint is quantized.
    """

    kind = "hf"

    def __init__(self, directory: Path, architecture: str, blocks: int) -> None:
        self._directory = directory
        self._tensors: dict[str, StoredTensor] = {}
        self.layers: dict[str, tuple[str, tuple[int, ...]]] = {}
        known = layer_names(architecture, blocks)
        stored = {n: tensor for path in shards(directory) for n, tensor in read_safetensors(path).items()}
        for name, tensor in stored.items():
            module = f"{known(name.removesuffix('.weight'))}.weight"
            if is_adaptable(module) and not parse(module)[1].endswith("_exps"):
                self._tensors[module] = tensor
                self.layers[module] = (name.removesuffix(".weight"), tensor.shape)
        if not self._tensors:
            some = ", ".join(list(stored)[:4])
            raise UnsupportedModelError(
                f"no tensor of {directory} maps to a module of architecture {architecture!r} ({some}, ...): "
                "is the deployed GGUF made from this model? If so, export from the GGUF"
            )
        self.modules = [name for name in self._tensors if parse(name)[1] in KINDS]

    def nbytes(self, module: str) -> int:
        """Bytes of a dense module's weight as it is stored."""
        return self._tensors[module].data.size

    def matrices(self, module: str) -> list[Matrix]:
        """Return the module's weight: one matrix."""
        if (tensor := self._tensors.get(module)) is None:
            raise ExportError(
                f"{module}, which the deployed GGUF has, is not a matrix in {self._directory}: experts are "
                "read from the GGUF alone. Leave it out with --targets, or export from the GGUF"
            )
        decode = float_decoder(tensor.dtype)
        if decode is None or len(tensor.shape) != 2 or 0 in tensor.shape:
            raise UnsupportedModelError(
                f"{module} is stored in {tensor.path.name} as {tensor.dtype} of shape {tensor.shape}: "
                "expected a matrix of floats; for quantized checkpoints export from the GGUF"
            )
        rows, columns = tensor.shape
        raw = tensor.data.reshape(rows, columns * FLOAT_BYTES[tensor.dtype])
        return [Matrix(raw, columns, decode)]


# Safetensors files


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: its type and shape as stated, its bytes memory-mapped."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8] = field(repr=False)


def shard_names(directory: Path) -> list[str]:
    """Return the names of a Hugging Face directory's safetensors files, in order, also of missing ones."""
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
            f"{directory} lacks {len(missing)} of {len(names)} safetensors files, such as {missing[0]}: "
            "expected a Hugging Face model directory; download it again"
        )
    return [directory / name for name in names]


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, without copying its data.

    ExportError: the file is damaged. UnsupportedModelError: it holds quantized weights.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise MissingExtraError("reading a Hugging Face directory", "safetensors", "export") from None
    try:
        with open_file(path) as file, safe_open(path, framework="numpy"):  # checks all that is used below
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{path} is damaged, or not a safetensors file: {error}") from None
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
