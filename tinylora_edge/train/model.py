"""The transformers model that learns, and which of its layers the modules of factors are.

The weights are the deployed ones, dequantized, or the original ones. GGUF keeps the rows of some layers in
another order than transformers: `factors_for` turns a module's factors into the layer's.
"""

from __future__ import annotations

import ctypes
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from os import PathLike
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import MissingExtraError, TrainError
from ..factorization import AGREEMENT, fitting_order, gap
from ..factors import Factors, Shape
from ..formats.gguf_transformers import forget_quantizer, layer_names, read_once
from ..modules import find_architecture, inverse, listed_order, parse, read_heads, row_orders

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

_libc = ctypes.CDLL(None) if os.name != "nt" else None


def default_dtype() -> str:
    """bf16 where this processor computes in it, else fp32."""
    # Builds without oneDNN, as those for Apple Silicon, do not have the operator at all.
    here = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if torch.cuda.is_available() or here else "fp32"


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute with one thread a pass in a block; afterwards its caller has as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_model(source: str | PathLike[str], dtype: str | None = None) -> Any:
    """Load a causal language model for training: frozen, in evaluation mode.

    Args:
        source: a GGUF file, which is dequantized (train what you ship), or a Hugging Face directory.
        dtype: `bf16` or `fp32`; by default `default_dtype()`.

    Raises:
        MissingExtraError: transformers is not installed.
        TrainError: transformers cannot read the model.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        raise MissingExtraError("training", "transformers", "train") from None
    source, kind = Path(source), dtype or default_dtype()
    if kind not in _DTYPES:
        raise TrainError(f"unknown dtype {dtype!r}: choose one of {', '.join(sorted(_DTYPES))}")
    location = location_of(source)
    if "gguf_file" in location:
        location["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        with _quiet(transformers.utils.logging), read_once():
            model = transformers.AutoModelForCausalLM.from_pretrained(**location, dtype=_DTYPES[kind])
    except (OSError, ValueError, KeyError) as error:
        raise TrainError(
            f"transformers cannot load {source} for training: {error}. "
            "Pass the original weights with --weights DIR"
        ) from None
    forget_quantizer(model)
    give_back()  # what dequantizing took
    return model.requires_grad_(False).eval()


def give_back() -> None:
    """Give freed memory back: glibc keeps it a thread (a run of 40 steps grew from 1.6 to 2.4 GB)."""
    if _libc is not None and hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def location_of(source: Path) -> dict[str, Any]:
    """Return the arguments by which transformers finds a GGUF file or a Hugging Face directory."""
    if source.is_file():
        return {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    return {"pretrained_model_name_or_path": str(source)}


def hf_names(model: nn.Module, factors: Factors) -> dict[str, str]:
    """Return module -> layer name for a transformers model; a TrainError where a module has no layer."""
    known = layer_names(factors.architecture, 1 + max(parse(module)[0] for module in factors.modules))
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    found = {f"{tensor}.weight": name for name in layers if (tensor := known(name)) is not None}
    missing = [module for module in factors.modules if module not in found]
    if missing and all(parse(module)[1].endswith("_exps") for module in missing):
        raise TrainError(
            f"experts cannot be trained in torch, where one tensor holds them all: {missing[0]} and "
            f"{len(missing) - 1} more modules of the factors. Export without them: --targets '!*_exps'"
        )
    if missing:
        raise TrainError(
            f"{len(missing)} of {len(factors.modules)} modules of the factors are not in the model, "
            f"such as {missing[0]}: it is another model, or of an architecture that trains elsewhere"
        )
    return {module: found[module] for module in factors.modules}


def factors_for(model: Any, factors: Factors, module: str, name: str, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return a module's leading A [q, in] and B [out, p], float32, B's rows as in layer `name`.

    GGUF keeps the rows of some layers in another order. The layer's weight decides, as it does in an export,
    and shows that it is the one that was factorized; a list of architectures has to do for a weight that is
    quantized, or is not all here.

    Raises:
        TrainError: there is no such layer, it is no linear layer, or the factors are not those of its weight.
    """
    try:
        layer: Any = model.get_submodule(name)
    except AttributeError:
        raise TrainError(f"the model has no layer {name}, which {module} of the factors maps to") from None
    if not isinstance(layer, nn.Linear):
        raise TrainError(
            f"{name} is a {type(layer).__name__}, not a linear layer: {module} cannot be adapted"
        )
    a, b = factors.leading(module, shape)
    if (b.shape[0], a.shape[1]) != (layer.out_features, layer.in_features):
        raise TrainError(
            f"{name} is {layer.out_features} x {layer.in_features}, but the factors of {module} fit "
            f"{b.shape[0]} x {a.shape[1]}: this is another model"
        )
    order = _order(model, layer.weight, a, b, module, name)
    return torch.from_numpy(a.copy()), torch.from_numpy(b[inverse(order)])


def _order(
    model: Any, weight: Tensor, a: NDArray[np.float32], b: NDArray[np.float32], module: str, name: str
) -> NDArray[np.int64]:
    """Return which row of a layer each row of the module in a GGUF is, int64 [out]."""
    kind, heads = parse(module)[1], read_heads(lambda key: getattr(model.config, key, None))
    if weight.is_meta or not weight.is_floating_point() or weight.shape != (len(b), a.shape[1]):
        named = str(model.config.model_type)
        architecture = find_architecture(named, set(gguf.MODEL_ARCH_NAMES.values())) or named
        return listed_order(architecture, kind, len(b), heads)
    # W A^T in float32, in pieces
    v = torch.from_numpy(a.T).to(weight.device)
    product = torch.cat([rows.float() @ v for rows in weight.detach().split(4096)]).cpu().numpy()
    orders = row_orders(kind, len(b), heads)
    order, found = fitting_order(orders, lambda order: gap(product, b[inverse(order)]))
    if order is None:
        raise TrainError(
            f"{name} is {found:.2g} away from the factors of {module} (at most {AGREEMENT} is accepted): it "
            "is another model, or keeps its rows in an order that is not known here"
        )
    return order


@contextmanager
def _quiet(log: Any) -> Iterator[None]:
    """Hide transformers' bars and its notes on how a GGUF could stay quantized."""
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # its GGUF reader has a bar that heeds no switch
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
