"""`Pool`: a bundle that many users share at the same time, each with a vector of his own."""

from __future__ import annotations

import asyncio
from os import PathLike
from typing import Any, Protocol, Self

from ...basis import Basis
from ...errors import OptionError, RequestError
from ...vector import Policy
from ..load import load
from .desk import Desk
from .scheduler import Scheduler, Scorer

_OWN_CONTEXT = 256  # tokens of the model's own context, which a pool does not use


class Loaded(Protocol):
    """A loaded model, as far as a pool needs it."""

    basis: Basis
    policy: Policy

    def _scheduler(self, **options: Any) -> Scheduler:
        """Return what answers many users at once over its weights."""

    def close(self) -> None:
        """Free it."""


class Pool(Desk):
    """A model whose answers many tasks of one program await at once, under a vector each.

        pool = runtime.Pool("bundle", policy=Policy(keys=[...]))
        answer = await pool.chat(messages, user="alice", vector=frame, max_tokens=64)
        async for piece in pool.stream(messages, user="bob", vector=other_frame):
            print(piece.text, end="")

    An answer is the one that the same request gets alone (greedy, token for token). To exchange the vector of
    one model between requests, `swap` and `using` do; with many users at once they would wait for each other.

    Args:
        base: as for `load`, or a model that `load` returned. Such a one stays the caller's, with its own
            context and vector; its `close` closes the pool.
        policy: what is demanded of vector bytes, at every request; that of a model that is given.
        contexts: of llama.cpp, that compute side by side; by default one a core, and one alone on a GPU.
        slots: users whose prefixes are remembered. In llama.cpp they take turns in each context, 4 unless
            told otherwise; in ONNX Runtime they are the rows of one batch, 16 unless told otherwise.
        n_ctx: tokens of the longest sequence, prompt and answer. In llama.cpp contexts * slots of them have
            memory from the start, in ONNX Runtime those that are used.
        waiting: requests that wait at most.
        n_threads: cores to use; by default all that this process may use.
        engine_options: as for `load`, of a base that is loaded.

    Attributes:
        model: whose weights the contexts share.

    Raises:
        TinyLoraError: the engine cannot make the contexts.
        RequestError: a number is below 1.
        OptionError: a vector, options for a model that is loaded already, or contexts for ONNX Runtime.
        Those of `load`.
    """

    def __init__(
        self,
        base: str | PathLike[str] | Loaded,
        *,
        policy: Policy | None = None,
        contexts: int | None = None,
        slots: int | None = None,
        n_ctx: int = 2048,
        waiting: int = 1024,
        n_threads: int | None = None,
        **engine_options: Any,
    ) -> None:
        numbers = {"contexts": contexts, "slots": slots, "n_ctx": n_ctx, "waiting": waiting}
        for name, value in {**numbers, "n_threads": n_threads}.items():
            if value is not None and value < 1:
                raise RequestError(f"a pool with {name}={value} answers nobody: pass 1 or more", param=name)
        if "vector_bytes" in engine_options:
            raise OptionError(
                "a pool takes no vector_bytes, as every request has a vector of its own: pass vector=... to "
                "chat, complete or stream"
            )
        self._owned: Loaded | None = None
        if isinstance(base, str | PathLike):
            self._owned = llm = load(base, policy=policy, n_ctx=_OWN_CONTEXT, **engine_options)
        elif policy is not None or engine_options:
            names = ", ".join([*(["policy"] if policy else []), *engine_options])
            raise OptionError(f"a pool over a loaded model takes no {names}: pass it to `load`")
        else:
            llm = base
        try:
            scheduler = llm._scheduler(
                contexts=contexts, slots=slots, n_ctx=n_ctx, waiting=waiting, n_threads=n_threads
            )
        except BaseException:
            if self._owned is not None:
                self._owned.close()
            raise
        super().__init__(scheduler, llm.basis, llm.policy)
        self.model = llm

    def scorer(self) -> Scorer:
        """Return what tells how likely answers are under any vector, over the same weights: see `Clicks`.

        Raises:
            TinyLoraError: the engine cannot make it, or the pool is closed.
        """
        return self._scheduler.scorer()

    def close(self) -> None:
        """End what is being answered with a `TinyLoraError`, and free everything. Again is fine.

        A step of the engine that is running ends first.
        """
        self._scheduler.close()
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)
