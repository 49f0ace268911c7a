"""The vectors of a pool's contexts: each context has its own, exchanged between two steps of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from ....vector import MicroVector
from ..personalizer import Active, choose, set_adapters
from ..protocols import Weights

_NOTHING = object()  # a context whose adapters are about to go


class ContextVectors:
    """The adapters of one model for many contexts, which compute at the same time with different vectors.

    Make it before the contexts, and free it after them and before the model.

    With u = 1 every vector is another set of scales of the same adapters. With u > 1 a vector is an adapter
    of its own, and llama.cpp looks at the list of a model's adapters while a context computes: one is loaded
    or freed while no context does.

    Args:
        llm: the model.
    """

    def __init__(self, llm: Weights) -> None:
        self._basis = llm.basis
        self._own = llm.own_adapters()
        with llm.turns.alone():
            self._strategy = choose(llm.model, llm.basis)
        self._staged: dict[MicroVector, Active] = {}
        self._contexts: dict[int, Any] = {}
        self._of: dict[int, object] = {}  # the vector of each context
        self._exchange = threading.Lock()
        self._turns = llm.turns

    def add(self, number: int, context: Any) -> None:
        """Take in a `llama_context`, with the base alone."""
        set_adapters(context, self._own)
        self._contexts[number], self._of[number] = context, None

    def apply(
        self, number: int, vector: MicroVector | None, needed: Callable[[], Collection[MicroVector]]
    ) -> None:
        """Make a vector the active one of a context, which does not compute; None for the base alone.

        Args:
            number: of the context.
            vector: that fits the basis.
            needed: gives the vectors that are needed again soon, of all contexts; what others take is freed.

        Raises:
            TinyLoraError: llama.cpp refuses.
        """
        with self._exchange:
            if self._of[number] is not _NOTHING and self._of[number] == vector:
                return
            if vector is None or vector in self._staged:
                self._set(number, vector)
                return
        with self._turns.alone(), self._exchange:
            if vector not in self._staged:  # another context may have staged it meanwhile
                self._retire(needed())
                self._staged[vector] = self._strategy.stage(self._basis.values(vector))
            self._set(number, vector)
            self._strategy.settle([each for active in self._staged.values() for each in active])

    def free(self) -> None:
        """Free every adapter."""
        with self._turns.alone():
            self._strategy.free()

    def _set(self, number: int, vector: MicroVector | None) -> None:
        if vector is None:
            active: Active = []
        else:
            active = self._staged[vector]
        set_adapters(self._contexts[number], [*active, *self._own])
        self._of[number] = vector

    def _retire(self, needed: Collection[MicroVector]) -> None:
        """Forget the vectors that nobody needs; a context that has one has no adapter of it any more."""
        for each in [staged for staged in self._staged if staged not in needed]:
            del self._staged[each]
            for number, of in self._of.items():
                if of == each:
                    set_adapters(self._contexts[number], self._own)
                    self._of[number] = _NOTHING
