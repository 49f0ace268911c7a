"""The two strategies by which a micro-vector becomes llama.cpp adapters: u = 1 scales, u > 1 folds."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import TinyLoraError
from ...vector import MicroVector
from .adapters import AdapterLock
from .lora import Adapter, LoraImage, free

Active = list[tuple[Adapter, float]]
"""Adapters and their scales, as `llama_set_adapters_lora` takes them."""


class Strategy(Protocol):
    """A way to turn values into adapters, which exist from the start: llama.cpp sizes its graph for them."""

    def stage(self, values: NDArray[np.float32]) -> Active:
        """Return what to activate for the values [G, u]; nothing that is active now changes."""

    def settle(self, active: Active) -> None:
        """Free whatever is neither active nor needed again."""

    def free(self) -> None:
        """Free every adapter."""


def choose(model: Any, basis: Basis) -> Strategy:
    """Return the strategy for a basis, its adapters loaded into the model."""
    return Fold(model, basis)


class Personalizer:
    """The adapters of one model, which apply micro-vectors to its llama.cpp contexts, all or nothing.

    Make it before the contexts, and free it after them and before the model.

    Args:
        model: the `llama_model`.
        basis: of the vectors.
        turns: of what else computes with the model: while adapters are loaded or freed, nothing does.
    """

    def __init__(self, model: Any, basis: Basis, turns: AdapterLock) -> None:
        self._basis, self._turns = basis, turns
        with turns.alone():
            self._strategy = choose(model, basis)
        self._active: Active = []
        self.vector: MicroVector | None = None

    def apply(
        self,
        contexts: Sequence[Any],
        vector: MicroVector | None,
        others: Sequence[tuple[Adapter, float]] = (),
    ) -> None:
        """Make a vector the active one of every context; None for the base alone.

        Args:
            contexts: each a `llama_context`.
            vector: what to apply.
            others: adapters of the caller's own, which stay in force beside the vector.

        Raises:
            VectorError: the vector does not fit the basis.
            TinyLoraError: llama.cpp refuses; the vector before stays active.
        """
        with self._changing():
            active = self._stage(vector)
            changed = []
            try:
                for context in contexts:
                    set_adapters(context, [*active, *others])
                    changed.append(context)
            except BaseException:
                for context in changed:
                    set_adapters(context, [*self._active, *others])
                self._strategy.settle(self._active)
                raise
            self._strategy.settle(active)
            self._active, self.vector = active, vector

    def spread(
        self,
        contexts: Sequence[Any],
        vectors: Sequence[MicroVector | None],
        others: Sequence[tuple[Adapter, float]] = (),
    ) -> None:
        """Give each context a vector of its own, until `apply` gives all of them one again.

        Args:
            contexts: as many as vectors.
            vectors: None for the base alone.
            others: adapters of the caller's own, which stay in force beside each vector.

        Raises:
            VectorError: a vector does not fit the basis.
            TinyLoraError: llama.cpp refuses. Then, and for a vector that does not fit, every context has
                the vector that `apply` gave.
        """
        with self._changing():
            staged: list[Active] = []
            try:
                for context, vector in zip(contexts, vectors, strict=True):
                    active = self._stage(vector)
                    staged.append(active)
                    set_adapters(context, [*active, *others])
            except BaseException:
                for context in contexts:
                    set_adapters(context, [*self._active, *others])
                self._strategy.settle(self._active)
                raise
            self._strategy.settle([*self._active, *(each for active in staged for each in active)])

    def free(self) -> None:
        """Free every adapter."""
        with self._turns.alone():
            self._strategy.free()

    def _changing(self) -> AbstractContextManager[None]:
        """Be alone where another vector means other adapters."""
        return self._turns.alone()

    def _stage(self, vector: MicroVector | None) -> Active:
        # An app's own vector may have its values in another shape than [G, u].
        return [] if vector is None else self._strategy.stage(self._basis.values(vector))


class Fold:
    """The strategy for u > 1: one adapter (A, B R); a swap rewrites the B blocks of its GGUF image."""

    _free = staticmethod(free)

    def __init__(self, model: Any, basis: Basis) -> None:
        self._model = model
        self._basis = basis
        self._b = [np.asarray(b, np.float32) for b in basis.b]
        pairs = {m: (basis.a[i], np.zeros_like(self._b[i])) for i, m in enumerate(basis.modules)}
        self._image = LoraImage(basis.architecture, pairs)
        self._adapters = [self._image.load(model)]

    def stage(self, values: NDArray[np.float32]) -> Active:
        """Return one adapter with R folded into B, or none where every value is 0."""
        if not values.any():
            return []
        with np.errstate(over="ignore", invalid="ignore"):  # a vector may be too large for the model
            for module, b, r in zip(self._basis.modules, self._b, self._basis.R(values), strict=True):
                np.matmul(b, r, out=self._image.b[module])
        adapter = self._image.load(self._model)
        self._adapters.append(adapter)
        return [(adapter, 1.0)]

    def settle(self, active: Active) -> None:
        """Free the adapters of earlier vectors."""
        keep = [adapter for adapter, _ in active]
        stale = [adapter for adapter in self._adapters if adapter not in keep]
        self._adapters = keep
        for adapter in stale:
            self._free(adapter)

    def free(self) -> None:
        """Free every adapter."""
        self.settle([])


def set_adapters(context: Any, active: Active) -> None:
    """Make these the adapters of a context, and no others.

    Raises:
        TinyLoraError: llama.cpp refuses.
    """
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * len(active))(*(a for a, _ in active))
    scales = (ctypes.c_float * len(active))(*(s for _, s in active))
    code = llama_cpp.llama_set_adapters_lora(context, adapters, len(active), scales)
    if code:
        raise TinyLoraError(f"llama.cpp refused to set {len(active)} adapters (code {code})")
