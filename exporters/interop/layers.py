"""Layers of a Hugging Face model, and the modules of a basis that they are. Its files are read; no torch."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from ...errors import ExportError, UnsupportedModelError
from ...modules import KINDS, inverse, is_adaptable, listed_order, parse
from ..weights.hf_config import HFConfig
from ..weights.safetensors import read_safetensors, shards

# transformers registers these in this order inside a decoder layer, and PEFT counts in it. Fused and expert
# layers stand elsewhere in each model.
_COUNTED = tuple(kind for kind in KINDS if kind != "attn_qkv" and not kind.endswith("_exps"))


class Layers:
    """The adaptable layers of a Hugging Face model directory.

    Args:
        directory: with `config.json` and safetensors.

    Attributes:
        names: module -> name of its layer, such as `model.layers.0.self_attn.q_proj`.
        modules: the reverse.
        shapes: module -> shape of its layer's weight, (out, in).
        config: its configuration.

    Raises:
        ExportError: a file is missing or damaged.
        UnsupportedModelError: no GGUF architecture is known for it, or no layer can be adapted.
    """

    def __init__(self, directory: Path) -> None:
        self.config = HFConfig(directory)
        arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[self.config.architecture]
        table = gguf.get_tensor_name_map(arch, self.config.blocks)
        self.names: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in shards(directory):
            for tensor, stored in read_safetensors(path).items():
                module = table.get_name(tensor, try_suffixes=(".weight",))
                if module is not None and is_adaptable(module) and tensor.endswith(".weight"):
                    self.names[module] = tensor.removesuffix(".weight")
                    self.shapes[module] = stored.shape
        if not self.names:
            raise UnsupportedModelError(f"{directory} has no linear layers that can be adapted")
        self.modules = {name: module for module, name in self.names.items()}

    def name(self, module: str) -> str:
        """Return the layer of a module.

        Raises:
            ExportError: the model has none.
        """
        if module not in self.names:
            raise ExportError(
                f"{self.config.path.parent} has no layer for {module}: it is another model than the basis "
                "is for"
            )
        return self.names[module]

    def to_gguf_rows(self, module: str, b: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring the rows of B, [out, r], from the layer's order into that of the GGUF."""
        return b[self._order(module, len(b))]

    def to_hf_rows(self, module: str, b: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring the rows of B, [out, r], from the order of the GGUF into the layer's."""
        return b[inverse(self._order(module, len(b)))]

    def _order(self, module: str, rows: int) -> NDArray[np.int64]:
        return listed_order(self.config.architecture, parse(module)[1], rows, self.config.heads)


def check_counted(modules: list[str]) -> None:
    """Check that the order in which transformers and PEFT count these modules is the canonical one.

    Raises:
        UnsupportedModelError: a kind of layer stands at another place in each model.
    """
    for module in modules:
        if parse(module)[1] not in _COUNTED:
            raise UnsupportedModelError(
                f"{module} is of a kind whose place PEFT counts differently in each model: a checkpoint "
                "with it cannot be converted without the model's code"
            )


def layer_of(key: str, suffix: str) -> str | None:
    """Return the layer that a key of a PEFT checkpoint belongs to, or None where it has another suffix."""
    found = re.fullmatch(rf"base_model\.model\.(.+)\.{re.escape(suffix)}", key)
    return found[1] if found else None
