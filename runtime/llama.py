"""The llama.cpp backend: a `llama_cpp.Llama` whose micro-vector can be exchanged while it runs."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from inspect import GEN_SUSPENDED, getgeneratorstate
from typing import Any

import llama_cpp
import numpy as np

from .._basis import Basis
from .._policy import Policy
from .._vector import MicroVector
from ..errors import BusyError, TinyLoraError, VectorError
from ._gate import Gate
from ._strategies import Personalizer


class TinyLoraLlama(llama_cpp.Llama):
    """A `llama_cpp.Llama`, all of it, with a micro-vector.

    Generations and exchanges of the vector take turns between threads: an exchange waits for a running
    generation and never tears one. Get one from `tinylora_edge.runtime.load`.

    Args:
        model_path: the GGUF base; `load` has checked that it belongs to the basis.
        basis: factors, projections and tying.
        policy: what is demanded of vector bytes.
        options: those of `llama_cpp.Llama`.

    Raises:
        BaseMismatchError: llama.cpp refuses the factors for this model.
    """

    def __init__(
        self, model_path: str, *, basis: Basis, policy: Policy | None = None, **options: Any
    ) -> None:
        self.basis = basis
        self.policy = policy or Policy()
        self._gate = Gate()
        self._streams: weakref.WeakSet[Generator[Any, Any, None]] = weakref.WeakSet()
        self._evaluated = False
        self._begun = 1  # generations that began over an unfinished stream, which notices by it
        super().__init__(model_path, **options)

    # llama.cpp sizes its graph for the adapters that exist when the context is created, and Llama's
    # constructor makes model and context in one go; the moment between them is this assignment.
    @property
    def _model(self) -> Any:
        return self.__dict__["_model"]

    @_model.setter
    def _model(self, model: Any) -> None:
        self.__dict__["_model"] = model
        self._personalizer = Personalizer(model.model, self.basis)
        self._stack.callback(self._personalizer.free)  # after the context is freed, before the model is

    @property
    def vector(self) -> MicroVector | None:
        """The active micro-vector, or None for the base alone."""
        return self._personalizer.vector

    def swap(
        self,
        vector: bytes | MicroVector,
        *,
        stream: str = "",
        wait: bool = True,
        timeout: float | None = None,
    ) -> MicroVector:
        """Exchange the micro-vector, all or nothing, and return the one that is now active.

        The KV cache, the prefix cache and a `LlamaCache` hold what the old model computed: they are
        emptied. The output after any sequence of swaps equals that of a fresh load of the last vector.

        Args:
            vector: a frame or a raw payload, checked by the policy; or a `MicroVector` of the app's own.
            stream: which sequence of vectors the bytes belong to (see `Policy`).
            wait: wait for a generation in another thread; False refuses instead.
            timeout: seconds to wait at most; None for as long as it takes.

        Raises:
            VectorError: the vector was refused; the subclass says why. The model stays as it was.
            BusyError: a generation is running, and waiting was not asked for, or took too long, or
                would never end because this thread runs it.
        """
        with self._gate.exchange(wait=wait, timeout=timeout):
            if isinstance(vector, MicroVector):
                self._activate(vector)
                return vector
            checked = self.policy.check(vector, self.basis, stream=stream)
            self._activate(checked)
            self.policy.record(checked, self.basis, stream=stream)
            return checked

    def clear(self, *, wait: bool = True, timeout: float | None = None) -> None:
        """Go back to the base, bit for bit.

        Raises:
            BusyError: as for `swap`.
        """
        with self._gate.exchange(wait=wait, timeout=timeout):
            self._activate(None)

    @contextmanager
    def using(self, vector: bytes | MicroVector, *, stream: str = "") -> Iterator[MicroVector]:
        """Apply a micro-vector for one block, and the one before it again at its end.

        Other threads wait until the block ends. A stream that it leaves unfinished is closed, since its
        vector is gone. Arguments and errors are those of `swap`.
        """
        with self._gate.hold():
            before = self.vector
            active = self.swap(vector, stream=stream)
            try:
                yield active
            finally:
                with self._gate.computing():  # once no other thread is inside a step of such a stream
                    for unfinished in list(self._streams):
                        if getgeneratorstate(unfinished) == GEN_SUSPENDED:
                            unfinished.close()
                    self._activate(before)

    def _activate(self, vector: MicroVector | None) -> None:
        if self._ctx.ctx is None:
            raise TinyLoraError("the model is closed: load it again")
        own = [] if self._lora_adapter is None else [(self._lora_adapter, self.lora_scale)]
        self._personalizer.apply([self._ctx.ctx], vector, own)  # the caller's lora_path stays in force
        self._forget()

    def _forget(self) -> None:
        """Drop every cached computation of the model as it was."""
        self.reset()
        memory = llama_cpp.llama_get_memory(self._ctx.ctx)
        if memory is not None:
            # Zeroing the cells takes milliseconds and matters only for NaN, which no mask hides.
            llama_cpp.llama_memory_clear(memory, self._evaluated and not self._finite())
        self._evaluated = False
        if self.cache is not None:
            _empty(self.cache)

    def _finite(self) -> bool:
        logits = llama_cpp.llama_get_logits_ith(self._ctx.ctx, -1)
        return bool(logits) and bool(np.isfinite(logits[: min(64, self._n_vocab)]).all())

    # What runs the model holds the gate, from its first step to its last.

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.generate`."""
        return self._stream(super().generate(*args, **kwargs))

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.create_completion`; its cache lookups happen under the same hold."""
        with self._compute():
            result = super().create_completion(*args, **kwargs)
        return result if isinstance(result, dict) else self._stream(result)

    def _stream(self, steps: Generator[Any, Any, None]) -> Generator[Any, Any, None]:
        held = self._hold_while(steps)
        self._streams.add(held)
        return held

    def _hold_while(self, steps: Generator[Any, Any, None]) -> Generator[Any, Any, None]:
        """Pass on a generator, holding the model from its first step to its last."""
        with self._gate.generation(), closing(steps):
            sent, begun = None, 0
            while True:
                with self._gate.computing() as over_another:  # a server may take each step in another thread
                    if not begun:
                        self._begun += over_another
                        begun = self._begun
                    if begun != self._begun:
                        raise BusyError(
                            "this stream cannot go on: its thread began another generation before it "
                            "ended, and that took its place in the KV cache"
                        )
                    try:
                        item = steps.send(sent)
                    except StopIteration:
                        return
                sent = yield item

    @contextmanager
    def _compute(self) -> Iterator[None]:
        """Hold the model for one call. A stream that its thread left unfinished cannot go on after it."""
        with self._gate.generation(), self._gate.computing() as over_another:
            self._begun += over_another
            yield

    def eval(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.eval`."""
        with self._compute():
            self._evaluated = True
            return super().eval(*args, **kwargs)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.embed`."""
        with self._compute():
            return super().embed(*args, **kwargs)

    def save_state(self) -> Any:
        """As `llama_cpp.Llama.save_state`; the state remembers the vector that it was computed with."""
        with self._gate.generation():
            state: Any = super().save_state()
            state.tinylora_vector = self.vector
            return state

    def load_state(self, state: Any) -> None:
        """As `llama_cpp.Llama.load_state`.

        Raises:
            VectorError: the state was computed with another vector than the active one.
        """
        from_cache = self._gate.generating  # a completion found it in the LlamaCache that it was given
        with self._gate.generation():
            if getattr(state, "tinylora_vector", None) != self.vector:
                if from_cache:
                    return  # of no use here: evaluate the prompt instead
                raise VectorError(
                    "the saved state was computed with another vector than the active one: swap to the "
                    "vector that it was saved under, or evaluate the prompt again"
                )
            super().load_state(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "basis": self.basis, "policy": self.policy, "_vector": self.vector}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vector = state.pop("_vector")
        self.__init__(**state)  # type: ignore[misc]
        if vector is not None:
            self.swap(vector)


def _empty(cache: Any) -> None:
    # Llama's caches have no method for it: LlamaRAMCache keeps an OrderedDict, LlamaDiskCache a diskcache.
    for name in ("cache_state", "cache"):
        store: Any = getattr(cache, name, None)
        if hasattr(store, "clear"):
            store.clear()
            return
    cache.clear()
