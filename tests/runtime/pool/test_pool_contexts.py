"""The contexts of a pool on llama.cpp: their adapters, and the cells of their slots."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from turns import PATIENCE, blocked, start

from tinylora_edge import Basis, MicroVector, VectorError
from tinylora_edge.runtime import Pool, TinyLoraLlama
from tinylora_edge.runtime.llama.pool import vectors as module
from tinylora_edge.runtime.llama.pool.context import CHUNK, Context
from tinylora_edge.runtime.llama.pool.vectors import ContextVectors

PROMPT = list(b"one two three")


def huge(basis: Basis) -> MicroVector:
    return MicroVector(np.full((basis.groups, basis.u), 1e30, np.float32))


def test_two_contexts_that_lack_one_vector_share_its_adapter(
    load: Callable[..., TinyLoraLlama], tiny_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait to be alone, and who comes second must not free what the first has in its context."""
    has: dict[Any, list[Any]] = {}
    real = module.set_adapters

    def seen(context: Any, active: list[Any]) -> None:
        real(context, active)
        has[context] = [adapter for adapter, _ in active]

    monkeypatch.setattr(module, "set_adapters", seen)
    with load(tiny_bundles["dense"]) as llm:
        shared = ContextVectors(llm)
        contexts = [Context(llm, slots=1, n_ctx=64, n_threads=1) for _ in range(2)]
        for number, context in enumerate(contexts):
            shared.add(number, context.context)
        vector = MicroVector.random(llm.basis, 1.0)
        with llm.turns.computing():
            waiting = [start(shared.apply, number, vector, lambda: {vector}) for number in range(2)]
            assert all(blocked(each) for each in waiting)
        for each in waiting:
            each.result(PATIENCE)
        loaded = shared._strategy._adapters
        assert [has[context.context] for context in contexts] == [loaded, loaded]
        first, second = (each.evaluate(each.slots[0], PROMPT, last=True).tolist() for each in contexts)
        assert first == second
        for context in contexts:
            context.free()
        shared.free()


def test_a_prompts_first_part_already_tells_that_the_vector_is_too_large(
    load: Callable[..., TinyLoraLlama], tiny_bundle: Path
) -> None:
    """Whoever gives up before the last part leaves nothing that the slot's next user would compute with."""
    with load(tiny_bundle) as llm:
        vectors = ContextVectors(llm)
        context = Context(llm, slots=2, n_ctx=2 * CHUNK, n_threads=1)
        vectors.add(0, context.context)
        mine, other = context.slots
        expected = context.evaluate(other, PROMPT, last=True).tolist()
        context.cut(other, 0)
        vectors.apply(0, huge(llm.basis), set)
        with pytest.raises(VectorError, match="too large"):
            context.evaluate(mine, [65] * CHUNK, last=False)
        vectors.apply(0, None, set)
        for slot in (mine, other):
            context.cut(slot, 0)
            assert context.evaluate(slot, PROMPT, last=True).tolist() == expected
        assert context.evaluate(mine, PROMPT, last=False) is None
        context.free()
        vectors.free()


def test_slots_are_emptied_where_nobody_looks_at_them(
    tiny_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever submits a request compares its prompt with them meanwhile, and holds the lock for that."""
    exploded, go_on, real = threading.Event(), threading.Event(), Context.evaluate

    def evaluate(self: Context, *args: Any, **options: Any) -> Any:
        try:
            return real(self, *args, **options)
        except VectorError:
            exploded.set()
            assert go_on.wait(PATIENCE)
            raise

    monkeypatch.setattr(Context, "evaluate", evaluate)
    with Pool(tiny_bundles["tiled"], contexts=1, slots=2, n_ctx=64, n_threads=1) as pool:
        asyncio.run(pool.complete("abc", user="bob", max_tokens=1, temperature=0))
        (kept,) = (slot for slot in pool._scheduler._context_of if slot.user == "bob")
        bad = start(asyncio.run, pool.complete("abc", user="mallory", vector=huge(pool.basis)))
        assert exploded.wait(PATIENCE)
        with pool._scheduler._places.changed:
            go_on.set()
            assert blocked(bad)
            assert kept.tokens
        with pytest.raises(VectorError, match="too large"):
            bad.result(PATIENCE)
        assert not kept.tokens
