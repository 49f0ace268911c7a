"""A Hugging Face directory: its configuration, and its weights under the names of a GGUF architecture.

Checkpoints keep the experts of a mixture in many ways: they are read from the GGUF alone.
"""

from __future__ import annotations

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
        return self._tensors[module].nbytes

    def matrices(self, module: str) -> list[RowSource]:
        """Return the module's weight: one matrix."""
        if module not in self._tensors:
            known = sorted(self._tensors)
            experts = parse(module)[1].endswith("_exps")
            what = "has experts, read from the GGUF alone, and none" if experts else "has no tensor"
            raise ExportError(
                f"{module}, which the deployed GGUF has, {what} in {self._directory}, whose modules go from "
                f"{known[0]} to {known[-1]}. Leave it out with --targets, or export from the GGUF alone"
            )
        return [self._tensors[module].matrix(module)]
