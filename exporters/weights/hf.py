"""A Hugging Face directory: its configuration, and its weights under the names of a GGUF architecture.

Checkpoints keep the experts of a mixture in two ways: a tensor an expert, as most of those on the hub, or one
tensor for all, with gate and up together, as transformers holds them in memory and saves some. A GGUF has one
tensor for all of gate, up and down, or gate and up together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf

from ...errors import ExportError, UnsupportedModelError
from ...factorization import RowSource
from ...formats.gguf_transformers import layer_names
from ...jsonio import read_json
from ...limits import BLOCKS
from ...modules import KINDS, find_architecture, is_adaptable, parse, read_heads
from .safetensors import StoredTensor, read_safetensors, shards

_OTHERWISE = frozenset({"gpt-oss", "llama4", "qwen3vlmoe"})
"""Architectures that keep stacked experts as [experts, in, out], or gate and up row by row, in MXFP4."""

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")
_GATE_UP, _DOWN = "gate_up_proj", "down_proj"  # what gate and up together are called: down has a GGUF name


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

    Raises:
        ExportError: files are missing or damaged.
        UnsupportedModelError: no tensor maps to a module, or the checkpoint is quantized in a way that is
            not read.
    """

    kind = "hf"

    def __init__(self, directory: Path, architecture: str, blocks: int) -> None:
        self._directory = directory
        self._architecture = architecture
        self._tensors: dict[str, StoredTensor] = {}
        self._experts: dict[str, dict[int, StoredTensor]] = {}
        self.layers: dict[str, tuple[str, tuple[int, ...]]] = {}
        known = layer_names(architecture, blocks)
        stored = {n: tensor for path in shards(directory) for n, tensor in read_safetensors(path).items()}
        for name, tensor in stored.items():
            expert = _EXPERT.fullmatch(name)
            module = _module_of(known, f"{expert[1]}.{expert[3]}" if expert else name)
            if module is None:
                continue
            if expert:
                self._experts.setdefault(module, {})[int(expert[2])] = tensor
            else:
                self._tensors[module] = tensor
                self.layers[module] = (name.removesuffix(".weight"), tensor.shape)
        if not self._tensors and not self._experts:
            some = ", ".join(list(stored)[:4])
            raise UnsupportedModelError(
                f"no tensor of {directory} maps to a module of architecture {architecture!r} ({some}, ...): "
                "is the deployed GGUF made from this model? If so, export from the GGUF"
            )
        self.modules = [
            name for name in self._tensors if (k := parse(name)[1]) in KINDS and not k.endswith("_exps")
        ]

    def nbytes(self, module: str) -> int:
        """Bytes of a dense module's weight as it is stored."""
        return self._tensors[module].nbytes

    def matrices(self, module: str) -> list[RowSource]:
        """Return the module's weight: one matrix, or one an expert."""
        if self._architecture in _OTHERWISE and parse(module)[1].endswith("_exps"):
            raise UnsupportedModelError(
                f"{module} of {self._architecture} is not read from {self._directory}: export from the "
                "GGUF, or leave experts out (--targets '!*_exps')"
            )
        found = self._whole(module) or self._half(module)
        if found is None:
            known = sorted([*self._tensors, *self._experts])
            raise ExportError(
                f"{self._directory} has no tensor for {module}, which the deployed GGUF has; the modules "
                f"found go from {known[0]} to {known[-1]}. Leave it out with --targets, "
                "or export from the GGUF alone"
            )
        return found

    def _whole(self, module: str) -> list[RowSource] | None:
        """A tensor of its own, or a tensor an expert."""
        if module in self._tensors:
            return self._read(module, module, None)
        experts = self._experts.get(module)
        if experts is None:
            return None
        missing = sorted(set(range(max(experts) + 1)) - set(experts))
        if missing:
            raise ExportError(
                f"{self._directory} lacks expert {missing[0]} of {module}, though it has {len(experts)} "
                f"others, up to {max(experts)}: download it again"
            )
        return [m for n in sorted(experts) for m in experts[n].matrices(f"{module}, expert {n},")]

    def _half(self, module: str) -> list[RowSource] | None:
        """Gate or up from a tensor that holds both."""
        found = re.fullmatch(r"(blk\.\d+\.ffn)_(gate|up)_exps\.weight", module)
        fused = f"{found[1]}_gate_up_exps.weight" if found else ""
        if found is None or fused not in self._tensors:
            return None
        return self._read(fused, module, ("gate", "up").index(found[2]))

    def _read(self, stored: str, module: str, half: int | None) -> list[RowSource]:
        return self._tensors[stored].matrices(module, half, stacked=parse(stored)[1].endswith("_exps"))


def _module_of(known: Callable[[str], str | None], name: str) -> str | None:
    """Return the module of a tensor by gguf's table and what that lacks, or None where it has none."""
    layer = name.removesuffix(".weight")
    found = known(layer)
    if found is None and layer.endswith(_GATE_UP):
        down = known(layer.removesuffix(_GATE_UP) + _DOWN)
        found = down.replace("ffn_down_", "ffn_gate_up_") if down else None
    module = f"{found}.weight"
    return module if is_adaptable(module) or "_gate_up_" in module else None
