"""Layers of a transformers model, and the modules of a basis that they are: names and orders of rows."""

from __future__ import annotations

from math import inf
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..basis import Basis
from ..errors import TrainError
from ..factorization import AGREEMENT, directions, gap
from ..modules import Heads, find_architecture, inverse, listed_order, parse, read_heads, row_orders


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

    Args and errors: see `order_for`.
    """
    order, position = order_for(model, basis, module, name), basis.index(module)
    a, b = (np.array(factors[position], np.float32) for factors in (basis.a, basis.b))
    return torch.from_numpy(a), torch.from_numpy(b[inverse(order)])


def order_for(model: Any, basis: Basis, module: str, name: str) -> NDArray[np.int64]:
    """Return which row of a layer each row of the module in a GGUF is, int64 [out].

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
    a, b = (np.array(factors[position], np.float32) for factors in (basis.a, basis.b))
    if (b.shape[0], a.shape[1]) != (layer.out_features, layer.in_features):
        raise TrainError(
            f"{name} is {layer.out_features} x {layer.in_features}, but the factors of {module} fit "
            f"{b.shape[0]} x {a.shape[1]}: this is another model"
        )
    kind, heads = parse(module)[1], _heads(model)
    weight = layer.weight
    if weight.is_meta or not weight.is_floating_point() or weight.shape != (len(b), a.shape[1]):
        return listed_order(gguf_architecture(model), kind, len(b), heads)
    best = inf
    product, norms = _product(weight.detach(), a), np.linalg.norm(a, axis=1)
    for order in row_orders(kind, len(b), heads):
        found = gap(product, b[inverse(order)] * norms)
        if found <= AGREEMENT:
            return order
        best = min(best, found)
    raise TrainError(
        f"{name} is {best:.2g} away from the factors of {module} (at most {AGREEMENT} is accepted): it is "
        "another model, or keeps its rows in an order that is not known here"
    )


def gguf_architecture(model: Any) -> str:
    """The `general.architecture` that convert_hf_to_gguf gives this model."""
    kind = str(model.config.model_type)
    return find_architecture(kind, set(gguf.MODEL_ARCH_NAMES.values())) or kind


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


def _product(weight: Tensor, a: NDArray[np.float32]) -> NDArray[np.float32]:
    """W times the directions of A, float32 [out, r]; for bfloat16 see the traps in docs/ARCHITECTURE.md."""
    v = torch.from_numpy(directions(a)[0]).to(weight.device)
    product: NDArray[np.float32] = torch.cat([rows.float() @ v for rows in weight.split(4096)]).cpu().numpy()
    return product


def _heads(model: Any) -> Heads:
    return read_heads(lambda name: getattr(model.config, name, None))
