"""From the modules of a basis (GGUF names and row order) to the layers of a transformers model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from ..architectures import PERMUTED, RENAMED
from ..basis import Basis
from ..errors import TrainError
from ..modules import parse

_AGREEMENT = 0.3  # as in an export: quantization to 2 bits gave up to 0.16, another row order 1 and more


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
            layer_name = name.replace("language_model.", "")  # inside of a model that also sees
            module = table.get_name(f"{layer_name}.weight", try_suffixes=(".weight",))
            if module is not None:
                found[module] = name
    missing = [module for module in basis.modules if module not in found]
    if missing and all(parse(module)[1].endswith("_exps") for module in missing):
        raise TrainError(
            f"experts cannot be trained in torch, where one tensor holds them all: {missing[0]} and "
            f"{len(missing) - 1} more modules of the basis. Export without them: --targets '!*_exps'"
        )
    if missing:
        raise TrainError(
            f"{len(missing)} of {len(basis.modules)} modules of the basis are not in the model, "
            f"such as {missing[0]}: it is another model, or of an architecture that trains elsewhere"
        )
    return {module: found[module] for module in basis.modules}


def factors_for(model: Any, basis: Basis, module: str, name: str) -> tuple[Tensor, Tensor]:
    """Return A [r, in] and B [out, r] of a module, float32 on the CPU, B's rows in the layer's order.

    GGUF keeps the rows of some layers in another order than transformers. The layer's weight decides, as it
    does in an export, and shows that it is the one that was factorized; a list of architectures has to do for
    a weight that is quantized, or is not all here.

    Args:
        model: the transformers model.
        basis: of the model.
        module: of the basis.
        name: of the layer that the module maps to.

    Raises:
        TrainError: there is no such layer, it is no linear layer, or the factors are not those of its weight.
    """
    layer = _linear(model, name, module)
    position = basis.index(module)
    a, b = (torch.from_numpy(np.array(factors[position], np.float32)) for factors in (basis.a, basis.b))
    if (b.shape[0], a.shape[1]) != (layer.out_features, layer.in_features):
        raise TrainError(
            f"{name} is {layer.out_features} x {layer.in_features}, but the factors of {module} fit "
            f"{b.shape[0]} x {a.shape[1]}: this is another model"
        )
    kind = parse(module)[1]
    weight = layer.weight
    if weight.is_meta or not weight.is_floating_point() or weight.shape != (len(b), a.shape[1]):
        permuted = gguf_architecture(model) in PERMUTED
        return a, b[list(_row_orders(model, kind, len(b)))[-1 if permuted else 0]]
    best = float("inf")
    product = _product(weight.detach(), a)
    for order in _row_orders(model, kind, len(b)):
        expected = b[order] * a.norm(dim=1)  # (U sqrt(S)) sqrt(S), or (U S) 1
        gap = ((product - expected).norm(dim=0) / expected.norm(dim=0)).max().item()
        if gap <= _AGREEMENT:
            return a, b[order]
        best = min(best, gap)
    raise TrainError(
        f"{name} is {best:.2g} away from the factors of {module} (at most {_AGREEMENT} is accepted): it is "
        "another model, or keeps its rows in an order that is not known here"
    )


def gguf_architecture(model: Any) -> str:
    """The `general.architecture` that convert_hf_to_gguf gives this model."""
    kind = str(model.config.model_type)
    return RENAMED.get(kind, kind)


def _linear(model: nn.Module, name: str, module: str) -> nn.Linear:
    try:
        linear = model.get_submodule(name)
    except AttributeError:
        raise TrainError(f"the model has no layer {name}, which {module} of the basis maps to") from None
    if not isinstance(linear, nn.Linear):
        raise TrainError(
            f"{name} is a {type(linear).__name__}, not a linear layer: {module} cannot be adapted"
        )
    return linear


def _product(weight: Tensor, a: Tensor) -> Tensor:
    """W times the directions of A, float32 [out, r]; for bfloat16 see the traps in docs/ARCHITECTURE.md."""
    directions = (a / a.norm(dim=1, keepdim=True)).T.to(weight.device)
    return torch.cat([rows.float() @ directions for rows in weight.split(4096)]).cpu()


def _row_orders(model: Any, kind: str, rows: int) -> Iterator[Tensor]:
    """Yield, for each row of the layer, its row in the GGUF: int64 [rows]; unchanged first."""
    every = torch.arange(rows)
    yield every
    config = model.config
    queries = getattr(config, "num_attention_heads", None)
    keys = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or queries
    heads = {"attn_q": queries, "attn_k": keys}.get(kind)
    if heads and rows % (2 * heads) == 0:
        # the two halves that transformers rotates are interleaved, as in Llama
        yield every.reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
    if kind == "attn_qkv" and queries and keys and rows % (queries + 2 * keys) == 0:
        # all q, all k, all v -> for each head of k its queries, k and v, as in Falcon
        size = rows // (queries + 2 * keys)
        parts = every.split([queries * size, keys * size, keys * size])
        yield torch.cat([part.reshape(keys, -1, size) for part in parts], dim=1).reshape(-1)
