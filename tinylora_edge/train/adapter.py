"""Loads a transformers model, frozen, and attaches TinyLoRA to it: v is all that is trained.

Each adapted linear layer computes y = x W^T + ((x A^T) R^T) B^T with the R that the basis's projection makes
of v. One autograd function computes the side path of a module. It keeps x A^T, of q columns, for the backward
pass, and neither the layer's input nor a gradient of its weight. v and its gradient are float32 whatever the
base is.

The weights are the deployed ones, dequantized, or the original ones. GGUF keeps the rows of some layers in
another order than transformers: `factors_for` puts the rows of B into the layer's order.
"""

from __future__ import annotations

import ctypes
import io
import math
import os
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..basis import Basis
from ..errors import MissingExtraError, TrainError
from ..factorization import AGREEMENT, fitting_rows, gap
from ..factors import Factors, Shape
from ..formats.gguf_transformers import layer_names, read_model
from ..modules import parse, read_heads
from ..projection import Projection
from ..runtime.batch import Stopped
from ..vector import AdmittedVector, MicroVector

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

_libc = ctypes.CDLL(None) if os.name != "nt" else None


class Adapter(nn.Module):
    """A basis attached to a `transformers` language model, which is frozen, and changed until `detach`.

    `v`, float32 [n], is the trainable parameter; the model's weights may have any float dtype. Once
    `time.monotonic()` is later than `until`, a pass ends with `Stopped` at its next module.

    Attributes:
        under: a frozen vector that acts together with v, beneath it; None without one.
        beneath: R of `under`, or zeros: float32 [M, p, q], large enough for v's R too.

    Raises:
        TrainError: a module of the basis is not in the model, is no linear layer, or its factors are not
            those of the layer's weight; the model stays as it was, but for being frozen.
    """

    beneath: Tensor

    def __init__(self, model: nn.Module, basis: Basis, under: AdmittedVector | None = None) -> None:
        super().__init__()
        self.basis, self.under = basis, under
        fixed = np.zeros((len(basis.modules), *basis.shape), np.float32) if under is None else under.r
        outputs, inputs = (max(each) for each in zip(basis.shape, fixed.shape[1:], strict=True))
        self.register_buffer("beneath", _padded(torch.from_numpy(fixed.copy()), outputs, inputs))
        self.v = nn.Parameter(torch.zeros(basis.size))
        self.until = math.inf
        self._handles: list[Any] = []
        self._forward = threading.local()  # several threads may run the model at once
        model.requires_grad_(False)
        pairs = factors_for(model, basis.factors, (outputs, inputs))
        for position, (name, pair) in enumerate(pairs.items()):
            linear: Any = model.get_submodule(name)
            weight = linear.weight
            a, b = (t.contiguous().to(weight.device, weight.dtype) for t in pair)
            self._handles.append(linear.register_forward_hook(self._hook(position, a, b)))
        body = getattr(model, "base_model", model)  # the learner also runs it alone, without the logits
        self._handles.append(body.register_forward_pre_hook(self._refresh))

    def set(self, v: MicroVector | ArrayLike) -> None:
        """Set v to a vector's values."""
        with torch.no_grad():
            self.v.copy_(torch.from_numpy(self.basis.values(v).copy()))

    def vector(self) -> MicroVector:
        """Return v as a micro-vector, on the vector beneath it."""
        values = self.v.detach().cpu().numpy().copy()
        return MicroVector(values, basis=self.basis.digest, under=self.under)

    def R(self) -> Tensor:
        """R of every module from the current v and the vectors beneath it: [M, p, q], differentiable."""
        own: Tensor = Projected.apply(self.v, self.basis.projection)
        return _padded(own, *self.beneath.shape[1:]) + self.beneath.to(own)

    @contextmanager
    def using(self, r: Tensor | None) -> Iterator[None]:
        """Use R [M, p, q] or [M, tokens, p, q] in place of v's in this thread's passes inside the block."""
        self._forward.own = r
        try:
            yield
        finally:
            self._forward.own = None

    @contextmanager
    def observing(self) -> Iterator[list[list[NDArray[np.float64]]]]:
        """Collect second moments of the directions of v in this thread's backward pass inside the block.

        Yields:
            for each module the sums over tokens of A x (A x)', float64 [q, q], and of B' d (B' d)', [p, p],
            where x is the module's input and d the gradient at its output.
        """
        found: list[list[NDArray[np.float64]]] = [[] for _ in self.basis.modules]
        self._forward.moments = found
        try:
            yield found
        finally:
            self._forward.moments = None

    def detach(self) -> None:
        """Take the adapter off the model, which stays frozen."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def _refresh(self, model: nn.Module, inputs: Any) -> None:
        # Once a forward pass, so that all modules share one projection, forward and backward.
        own = getattr(self._forward, "own", None)
        self._forward.r = self.R() if own is None else own

    def _hook(self, position: int, a: Tensor, b: Tensor) -> Any:
        def watch(low: Tensor | None = None, high: Tensor | None = None) -> None:
            if time.monotonic() > self.until:
                raise Stopped
            moments = getattr(self._forward, "moments", None)
            if moments is not None and low is not None and high is not None:
                own = low[:, : self.basis.shape[1]], high[:, : self.basis.shape[0]]
                moments[position] = [(each.mT @ each).double().cpu().numpy() for each in own]

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            side = inputs[0], self._forward.r[position], a, b, watch
            if output._is_view():  # a layer with a bias may return a view: autograd refuses to change it
                return output + SidePath.apply(*side)
            return SidePath.apply(*side, output)

        return add


def _padded(r: Tensor, outputs: int, inputs: int) -> Tensor:
    """Return R padded with zeros to `outputs` x `inputs`."""
    return nn.functional.pad(r, (0, inputs - r.shape[2], 0, outputs - r.shape[1]))


class Projected(torch.autograd.Function):
    """R of v [n]: [M, p, q], on v's device and in its dtype. numpy computes it, as for every engine."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, projection: Projection) -> Tensor:
        """Return R."""
        ctx.projection = projection
        r = projection.R(v.detach().to("cpu", torch.float32).numpy())
        return torch.from_numpy(r).to(v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of v, by the adjoint."""
        by_v = ctx.projection.adjoint(grads[0].cpu().numpy())
        return torch.from_numpy(by_v).to(grads[0]), None


class SidePath(torch.autograd.Function):
    """The side path ((x A^T) R^T) B^T, differentiable in x and R.

    Shapes: x [..., in], R [p, q], A [q, in], B [out, p] -> [..., out]. Every token of one row may have its
    own R: x [1, tokens, in], R [tokens, p, q]. R is float32 (or float64); the rest share the base's dtype.
    `watch` is called before the forward pass, and in the backward pass with x A^T and the gradient at the
    output of R, of all tokens; it may raise. The side path is added to `onto` in place, where that is given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        r: Tensor,
        a: Tensor,
        b: Tensor,
        watch: Callable[..., None] = lambda *_: None,
        onto: Tensor | None = None,
    ) -> Tensor:
        """Return the side path's output, or `onto`."""
        watch()
        ctx.watch, ctx.onto = watch, onto is not None
        low = x @ a.T
        ctx.save_for_backward(low, r, a, b)
        # R stays in float32: rounding to bfloat16 would undo steps that change v by less than 0.4 %
        high = _times(low.to(r.dtype), r.mT).to(low.dtype)
        if onto is None:
            return high @ b.T
        ctx.mark_dirty(onto)
        onto.view(-1, onto.shape[-1]).addmm_(high.flatten(0, -2), b.T)  # reads and writes `onto` once
        return onto

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and R, and of `onto`."""
        low, r, a, b = ctx.saved_tensors
        high = (grads[0] @ b).to(r.dtype)  # [..., p]: the gradient at the output of R
        ctx.watch(low.to(r.dtype).flatten(0, -2), high.flatten(0, -2))
        grad_x = grad_r = None
        if ctx.needs_input_grad[0]:
            grad_x = _times(high, r).to(low.dtype) @ a
        if ctx.needs_input_grad[1]:
            high, low = high.flatten(0, -2), low.to(r.dtype).flatten(0, -2)
            grad_r = high.mT @ low if r.dim() == 2 else high[:, :, None] * low[:, None]
        return grad_x, grad_r, None, None, None, grads[0] if ctx.onto else None


def _times(x: Tensor, r: Tensor) -> Tensor:
    """Return x R: with one R for all tokens, or for x [1, tokens, ...] with an R for each token."""
    return x @ r if r.dim() == 2 else (x[..., None, :] @ r)[..., 0, :]


@cache
def default_dtype(on_gpu: bool = False) -> str:
    """Return `bf16` on a GPU, on a CPU with AMX, and where a product of matrices is much faster; else `fp32`.

    On CPUs that have bfloat16 in AVX-512 alone, a gradient of Qwen2.5-Coder-0.5B took 1.6 times as long in it
    as in float32 on an Intel Xeon, and 0.44 times as long on an AMD EPYC.
    """
    if on_gpu or torch.cpu._is_amx_tile_supported():
        return "bf16"
    squares = {kind: torch.ones((512, 512), dtype=dtype) for kind, dtype in _DTYPES.items()}
    took = {kind: min(timeit.repeat("x @ x", globals={"x": x}, number=1)) for kind, x in squares.items()}
    return "bf16" if took["bf16"] < 0.7 * took["fp32"] else "fp32"


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch use one thread inside the block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_model(source: str | PathLike[str], dtype: str | None = None) -> Any:
    """Load a causal language model for training: frozen, in evaluation mode; a TrainError where that fails.

    `source` is a GGUF file, which is dequantized (train what you ship), or a Hugging Face directory; `dtype`
    is `bf16` or `fp32`, by default `default_dtype()`. MissingExtraError: transformers is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        raise MissingExtraError("training", "transformers", "train") from None
    source, kind = Path(source), dtype or default_dtype()
    if kind not in _DTYPES:
        raise TrainError(f"unknown dtype {dtype!r}: choose one of {', '.join(sorted(_DTYPES))}")
    if not source.exists():  # transformers would look for it on the hub
        raise TrainError(f"{source} does not exist: pass a directory of a model's weights, or a GGUF file")
    read = read_model if source.is_file() else transformers.AutoModelForCausalLM.from_pretrained
    try:
        with _quiet(transformers.utils.logging):
            model = read(source, dtype=_DTYPES[kind])
    except Exception as error:  # whatever the libraries of its formats raise
        needed = "the original weights with --weights DIR" if source.is_file() else "a directory of a model"
        raise TrainError(f"transformers cannot load {source} for training: {error}. Pass {needed}") from error
    give_back()
    return model.requires_grad_(False).eval()


def give_back() -> None:
    """Return freed memory to the system: glibc keeps it for each thread (in 40 steps 1.6 GB grew to 2.4)."""
    if _libc is not None and hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def hf_names(model: nn.Module, factors: Factors) -> dict[str, str]:
    """Return module -> layer name for a transformers model; a TrainError where a module has no layer."""
    known = layer_names(factors.architecture, 1 + max(parse(module)[0] for module in factors.modules))
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    found = {f"{tensor}.weight": name for name in layers if (tensor := known(name)) is not None}
    missing = [module for module in factors.modules if module not in found]
    if missing:
        raise TrainError(
            f"{len(missing)} of {len(factors.modules)} modules of the factors are no linear layers of the "
            f"model, such as {missing[0]}: it is another model, or has experts in one tensor, which cannot "
            "be trained here. Export without them: --targets '!*_exps'"
        )
    return {module: found[module] for module in factors.modules}


def factors_for(model: Any, factors: Factors, shape: Shape) -> dict[str, tuple[Tensor, Tensor]]:
    """Return layer name -> leading A [q, in] and B [out, p], float32, in the order of the modules.

    B has its rows in the order of the layer, which for some layers is another one than GGUF's. As in an
    export, the layer's weight decides which order that is, and whether the factors are its own. TrainError:
    they are not, or `hf_names` finds no layer.
    """
    found, heads = {}, read_heads(lambda key: getattr(model.config, key, None))
    for module, name in hf_names(model, factors).items():
        weight = model.get_submodule(name).weight
        a, b = factors.leading(module, shape)
        if (b.shape[0], a.shape[1]) != tuple(weight.shape):
            raise TrainError(
                f"{name} is {' x '.join(map(str, weight.shape))}, but the factors of {module} fit "
                f"{b.shape[0]} x {a.shape[1]}: it is another model, or its weights are quantized or in parts"
            )
        v = torch.from_numpy(a.T).to(weight.device)
        # W A^T in float32, some rows at a time
        product = torch.cat([rows.float() @ v for rows in weight.detach().split(4096)]).cpu().numpy()
        ordered, away = fitting_rows(module, b, heads, partial(gap, product), back=True)
        if ordered is None:
            raise TrainError(
                f"{name} is {away:.2g} away from the factors of {module} (at most {AGREEMENT} is accepted): "
                "it is another model, or keeps its rows in an unknown order"
            )
        found[name] = torch.from_numpy(a.copy()), torch.from_numpy(ordered)
    return found


@contextmanager
def _quiet(log: Any) -> Iterator[None]:
    """Hide transformers' bars and its notes on how a GGUF could stay quantized."""
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # its GGUF reader's bar has no switch
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
