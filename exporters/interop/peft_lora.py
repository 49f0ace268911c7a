"""PEFT's plain LoRAs as stock GGUF LoRAs, for a deployed model that is at hand as GGUF alone.

The model says which layers there are and how many heads it has; `row_orders` says which rows of q and k
moved. Each layer's scale, alpha / r or alpha / sqrt(r), is multiplied into B, so that layers of several ranks
share a file. llama.cpp's convert_lora_to_gguf does the same from the Hugging Face directory.
"""

from __future__ import annotations

import math
import re
from os import PathLike
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ...errors import BaseMismatchError, ExportError, UnsupportedModelError
from ...formats.gguf import FLOAT32, STRING, GGUFFile, MalformedGGUFError, open_gguf, write
from ...limits import BLOCKS
from ...modules import Heads, is_adaptable, listed_order, parse
from ...system import atomic_write
from ..weights.safetensors import read_safetensors
from .layers import layer_of
from .peft_files import WEIGHTS, existing, read_config

_UNKNOWN = ("use_dora", "use_qalora", "alora_invocation_tokens", "trainable_token_indices", "modules_to_save")
"""Fields of a configuration that change what a LoRA computes, where they are set."""


def lora_to_gguf(
    checkpoint: str | PathLike[str], base: str | PathLike[str], output: str | PathLike[str]
) -> None:
    """Write the GGUF LoRA of a PEFT LoRA.

    Args:
        checkpoint: directory that `save_pretrained` wrote.
        base: GGUF that is deployed, or the first file of a split one.
        output: the file to write.

    Raises:
        ExportError: a file is missing or damaged, or is no such checkpoint, or the output cannot be written.
        UnsupportedModelError: it adapts layers, or in a way, that a GGUF LoRA cannot.
        BaseMismatchError: it is of another model than `base`.
    """
    directory = Path(checkpoint)
    config = read_config(directory, "LORA")
    for field in _UNKNOWN:
        if config.get(field):
            raise UnsupportedModelError(f"{directory} is a LoRA with {field}, which a GGUF LoRA cannot say")
    if config.get("bias", "none") != "none":
        raise UnsupportedModelError(f"{directory} trained biases, which a GGUF LoRA does not carry")
    model = _Model(Path(base))
    stored = read_safetensors(existing(directory / WEIGHTS))
    tensors: dict[str, NDArray[np.float32]] = {}
    for key in stored:
        layer = layer_of(key, "lora_A.weight")
        if layer is None:
            if layer_of(key, "lora_B.weight") is None:
                raise UnsupportedModelError(f"{directory} holds {key}, which is no part of a LoRA's layer")
            continue
        other = key.replace(".lora_A.weight", ".lora_B.weight")
        if other not in stored:
            raise ExportError(f"{directory / WEIGHTS} has {key} and no {other}: it is damaged")
        module = model.module(layer, directory)
        a, b = stored[key].array(key), stored[other].array(other)
        tensors[f"{module}.lora_a"] = np.ascontiguousarray(a)
        scaled = b[model.order(module, len(b))] * np.float32(_scale(config, layer, len(a), directory))
        tensors[f"{module}.lora_b"] = np.ascontiguousarray(scaled)
    if not tensors:
        raise ExportError(f"{directory / WEIGHTS} has no LoRA layers")
    metadata = [
        ("general.type", "adapter", STRING),
        ("adapter.type", "lora", STRING),
        ("adapter.lora.alpha", 0.0, FLOAT32),  # 0: the sides are used as they are
    ]
    try:
        with atomic_write(Path(output)) as file:
            write(file, model.architecture, metadata, tensors)  # type: ignore[arg-type]
    except OSError as error:
        raise ExportError(f"{output} could not be written: {error.strerror or error}") from error


class _Model:
    """The deployed model, as far as the names and the rows of its layers go."""

    def __init__(self, base: Path) -> None:
        try:
            self._file: GGUFFile = open_gguf(base)
        except MalformedGGUFError as error:
            raise BaseMismatchError(f"{base} is not a usable GGUF model: {error}") from None
        self._name = base.name
        self.architecture = self._file.architecture
        known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
        if self.architecture not in known:
            raise UnsupportedModelError(
                f"{base} has the architecture {self.architecture!r}, which the gguf package does not know"
            )
        blocks = int(self._value("block_count") or 0)
        if blocks > BLOCKS:
            raise ExportError(
                f"{base} has {blocks:,} blocks, by its metadata: at most {BLOCKS:,} are read. Download or "
                "convert it again"
            )
        self._names = gguf.get_tensor_name_map(known[self.architecture], blocks)
        queries = self._value("attention.head_count")
        self._heads = Heads(queries, self._value("attention.head_count_kv") or queries)

    def module(self, layer: str, directory: Path) -> str:
        """Return the tensor of a layer; errors: those of `lora_to_gguf`."""
        found = self._names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if found is None or found not in self._file.tensors:
            raise BaseMismatchError(
                f"{directory} is a LoRA of another model: it adapts {layer}, and {self._name} has "
                "no such layer"
            )
        if not is_adaptable(found) or found.endswith("_exps.weight"):
            raise UnsupportedModelError(
                f"{directory} adapts {layer} ({found}), which is no linear layer of a decoder block"
            )
        return str(found)

    def order(self, module: str, rows: int) -> NDArray[np.int64]:
        """Return which row of the layer is which of the tensor."""
        return listed_order(self.architecture, parse(module)[1], rows, self._heads)

    def _value(self, key: str) -> int | None:
        value = self._file.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) else None


def _scale(config: dict[str, Any], layer: str, rank: int, directory: Path) -> float:
    """Return what PEFT multiplies B A of a layer by."""
    alpha = _pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ExportError(f"{directory} has lora_alpha = {alpha!r}: expected a number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: Any, layer: str, default: Any) -> Any:
    """Return the value of a layer where patterns name it, as PEFT matches them: at the end of its name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default
