"""From the modules of a basis (GGUF names and row order) to the layers of a transformers model."""

from __future__ import annotations

from typing import Any

import gguf
import torch
from torch import Tensor, nn

from .._architectures import PERMUTED, RENAMED
from .._basis import Basis
from ..errors import TrainError


def hf_names(model: nn.Module, basis: Basis) -> dict[str, str]:
    """Return module -> layer name for a transformers model.

    Raises:
        TrainError: a module of the basis has no layer.
    """
    architectures = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    blocks = 1 + max(int(module.split(".")[1]) for module in basis.modules)
    table = gguf.get_tensor_name_map(architectures[basis.architecture], blocks)
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            module = table.get_name(f"{name}.weight", try_suffixes=(".weight",))
            if module is not None:
                found[module] = name
    missing = [module for module in basis.modules if module not in found]
    if missing:
        raise TrainError(
            f"{len(missing)} of {len(basis.modules)} modules of the basis are not in the model, "
            f"such as {missing[0]}: it is another model, or of an architecture that trains elsewhere"
        )
    return {module: found[module] for module in basis.modules}


def row_order(model: Any, kind: str, rows: int) -> Tensor:
    """Return, for each row of the transformers layer, its row in the GGUF: int64 [rows].

    Llama-family q and k are stored in GGUF with the two halves that HF rotates interleaved.
    """
    order = torch.arange(rows)
    config = model.config
    if kind not in ("attn_q", "attn_k") or gguf_architecture(model) not in PERMUTED:
        return order
    heads = config.num_attention_heads if kind == "attn_q" else config.num_key_value_heads
    return order.reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def gguf_architecture(model: Any) -> str:
    """The `general.architecture` that convert_hf_to_gguf gives this model."""
    kind = str(model.config.model_type)
    return RENAMED.get(kind, kind)
