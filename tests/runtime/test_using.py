"""A vector for one block: `using`, alone and between threads."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import contextmanager

import pytest
from llama_cpp import LogitsProcessorList
from turns import LENGTH, PATIENCE, blocked, complete, start, stream

from tinylora_edge import BusyError, MicroVector


@pytest.fixture
def llm(load, tiny_bundles):
    """One strategy is enough: turns are taken before either comes in."""
    return load(tiny_bundles["scales"])


@pytest.fixture
def vector(llm):
    return MicroVector.random(llm.basis, 0.5, seed=1)


def test_using_restores_what_was_there(llm, vector):
    other = MicroVector.random(llm.basis, 0.5, seed=2)
    base = complete(llm)
    with llm.using(vector) as active:
        assert active == vector == llm.vector
        with_vector = complete(llm)
        with llm.using(other.to_bytes(llm.basis)) as inner:
            assert inner == other == llm.vector
            assert complete(llm) not in (base, with_vector)
        assert llm.vector == vector
        assert complete(llm) == with_vector
    assert llm.vector is None
    assert complete(llm) == base != with_vector


def test_using_restores_after_an_exception_and_after_exchanges_inside(llm, vector):
    other = MicroVector.random(llm.basis, 0.5, seed=2)
    llm.swap(other)
    expected = complete(llm)
    with pytest.raises(KeyError), llm.using(vector):
        raise KeyError
    assert llm.vector == other
    with llm.using(vector):
        llm.clear()
        assert llm.vector is None
    assert llm.vector == other
    assert complete(llm) == expected


def test_using_restores_though_the_block_left_a_stream_unfinished(llm, vector):
    """The stream's model goes away with the block; the vector must not outstay it."""
    kept = []

    def leave_one():
        with llm.using(vector):
            kept.append(stream(llm))
            next(kept[0])
            raise KeyError

    with pytest.raises(KeyError):
        leave_one()
    assert llm.vector is None
    assert start(llm.swap, vector, wait=False).result(PATIENCE) == vector


def test_a_using_block_does_not_end_while_another_thread_computes_in_it(llm, vector):
    """It would free adapters that are in use."""
    begun, running, proceed, steps = threading.Event(), threading.Event(), threading.Event(), []

    def pause(tokens, logits):
        if begun.is_set():
            running.set()
            assert proceed.wait(PATIENCE)
        return logits

    def block():
        with llm.using(vector):
            processors = LogitsProcessorList([pause])
            chunks = llm("abc", max_tokens=9, temperature=0.0, stream=True, logits_processor=processors)
            next(chunks)
            begun.set()
            steps.append(start(next, chunks))
            assert running.wait(PATIENCE)

    leaving = start(block)
    assert running.wait(PATIENCE)
    try:
        assert blocked(leaving)
        assert llm.vector == vector
    finally:
        proceed.set()
    leaving.result(PATIENCE)
    steps[0].result(PATIENCE)
    assert llm.vector is None


def test_a_using_block_in_a_generator_may_be_stepped_by_many_threads(llm, vector):
    """As a web framework steps a response that streams under a user's vector."""
    llm.swap(vector)
    expected = complete(llm)
    llm.clear()

    def response():
        with llm.using(vector):
            yield from stream(llm)

    parts = response()
    said = []
    while (part := start(next, parts, None).result(PATIENCE)) is not None:
        said.append(part)
    assert "".join(said) == expected
    assert llm.vector is None
    assert start(llm.swap, vector, wait=False).result(PATIENCE) == vector


def test_other_threads_wait_for_a_using_block(llm, vector):
    base = complete(llm)
    other = MicroVector.random(llm.basis, 0.5, seed=2)
    with llm.using(vector):
        generation, swap = start(complete, llm), start(llm.swap, other)
        assert blocked(generation)
        assert blocked(swap)
        with pytest.raises(BusyError):
            start(llm.swap, other, wait=False).result(PATIENCE)
        with pytest.raises(BusyError):
            start(llm.clear, timeout=0.01).result(PATIENCE)
        assert complete(llm) != base
        assert llm.vector == vector
    assert swap.result(PATIENCE) == other
    with_other = complete(llm)
    assert generation.result(PATIENCE) in (base, with_other)
    assert llm.vector == other


def test_a_stream_of_a_block_may_begin_in_another_thread(llm, vector):
    """Where nobody else is let in, the block's own stream is."""
    llm.swap(vector)
    expected = complete(llm)
    llm.clear()
    with llm.using(vector):
        made = llm("abc def", max_tokens=LENGTH, temperature=0.0, stream=True)
        chunks = start(list, made).result(PATIENCE)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
        assert complete(llm) == expected
    assert llm.vector is None


def test_a_step_in_another_thread_does_not_let_that_thread_inside(llm, vector):
    other = MicroVector.random(llm.basis, 0.5, seed=2)
    with llm.using(vector):
        expected = complete(llm)
        chunks = stream(llm)
        said = [next(chunks)]

        def step_and_swap():
            said.append(next(chunks))
            with pytest.raises(BusyError):
                llm.swap(other, wait=False)
            with pytest.raises(BusyError):
                llm.clear(timeout=0.01)
            return start(llm.swap, other)

        third = start(step_and_swap).result(PATIENCE)
        assert blocked(third)
        said.extend(chunks)
        assert "".join(said) == expected
        assert llm.vector == vector
        assert complete(llm) == expected, "the block's own thread does not wait for itself"
    assert third.result(PATIENCE) == other


def test_a_thread_that_stepped_a_suspended_generator_is_not_inside_its_block(llm, vector):
    base = complete(llm)

    def response():
        with llm.using(vector):
            yield complete(llm)
            yield complete(llm)

    parts = response()
    first = next(parts)
    for call in (lambda: complete(llm), lambda: llm.swap(vector), lambda: next(stream(llm))):
        with pytest.raises(BusyError, match="a `using` block of a generator is open"):
            call()
    waiting = start(complete, llm)
    assert blocked(waiting)
    assert next(parts) == first != base
    parts.close()
    assert waiting.result(PATIENCE) == base == complete(llm)


def test_a_block_goes_on_in_what_wraps_it(llm, vector):
    @contextmanager
    def personalized():
        with llm.using(vector):
            yield

    base = complete(llm)
    with personalized():
        assert complete(llm) != base
        assert llm.vector == vector
    assert complete(llm) == base


def test_a_block_is_that_of_a_task_and_follows_it_to_threads(llm, vector):
    base = complete(llm)
    other = MicroVector.random(llm.basis, 0.5, seed=2)

    async def personal(mine):
        with llm.using(mine):
            first = await asyncio.to_thread(complete, llm)
            await asyncio.sleep(0.01)
            return first, await asyncio.to_thread(complete, llm), llm.vector

    async def both():
        return await personal(vector), await personal(other)

    for said, again, active in asyncio.run(both()):
        assert said == again != base
        assert active in (vector, other)
    assert llm.vector is None


def test_a_task_does_not_wait_for_another_one_of_its_thread(llm, vector):
    """Neither inside the other's block, nor for ever."""
    base = complete(llm)

    async def personal():
        with llm.using(vector):
            await asyncio.sleep(0.01)
            return complete(llm)

    async def intrude():
        for call in (lambda: complete(llm), llm.clear, lambda: llm.using(vector).__enter__()):
            with pytest.raises(BusyError, match="in another task is open"):
                call()

    async def both():
        return await asyncio.gather(personal(), intrude())

    said, _ = asyncio.run(both())
    assert said != base == complete(llm)


def test_a_block_ends_only_when_a_call_in_it_has(llm, vector):
    """The context of `asyncio.to_thread` lets a call of another thread inside."""
    running, proceed = threading.Event(), threading.Event()

    def pause(tokens, logits):
        running.set()
        assert proceed.wait(PATIENCE)
        return logits

    calls = []

    def block():
        with llm.using(vector):
            context = contextvars.copy_context()
            processors = LogitsProcessorList([pause])
            calls.append(
                start(context.run, llm, "abc", max_tokens=2, temperature=0.0, logits_processor=processors)
            )
            assert running.wait(PATIENCE)

    leaving = start(block)
    assert running.wait(PATIENCE)
    assert blocked(leaving)
    assert llm.vector == vector
    proceed.set()
    leaving.result(PATIENCE)
    calls[0].result(PATIENCE)
    assert llm.vector is None
