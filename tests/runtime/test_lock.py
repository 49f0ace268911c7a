"""One at a time has the model: calls, exchanges of the vector, streams and blocks; none is ever torn."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from llama_cpp import LogitsProcessorList
from turns import LENGTH, PATIENCE, blocked, complete, half_way, start, stream

from tinylora_edge import BusyError, MicroVector, TinyLoraError


@pytest.fixture
def llm(load, tiny_bundle):
    return load(tiny_bundle)


@pytest.fixture
def vector(llm):
    return MicroVector.random(llm.bases.basis(numbers=13), 0.5, seed=1)


@pytest.mark.parametrize("action", ["swap", "clear", "using"])
def test_an_exchange_waits_for_a_streaming_generation(llm, vector, action):
    old = MicroVector.random(llm.bases.basis(numbers=13), 0.5, seed=2)
    llm.swap(old)
    expected = complete(llm)

    def exchange():
        if action == "clear":
            llm.clear()
        elif action == "swap":
            llm.swap(vector)
        else:
            with llm.using(vector):
                return complete(llm)
        return complete(llm)

    with half_way(llm) as (chunks, said):
        future = start(exchange)
        assert blocked(future)
        for chunk in chunks:
            assert llm.vector == old
            said.append(chunk)
    assert "".join(said) == expected
    other = future.result(PATIENCE)
    assert other != expected
    assert llm.vector == {"swap": vector, "clear": None, "using": old}[action]


def test_an_exchange_waits_for_a_generation_that_does_not_stream(llm, vector):
    expected = complete(llm)
    running, proceed = threading.Event(), threading.Event()

    def pause(tokens, logits):
        running.set()
        assert proceed.wait(PATIENCE)
        return logits

    generation = start(
        llm, "abc def", max_tokens=LENGTH, temperature=0.0, logits_processor=LogitsProcessorList([pause])
    )
    assert running.wait(PATIENCE)
    swap = start(llm.swap, vector)
    assert blocked(swap)
    proceed.set()
    assert generation.result(PATIENCE)["choices"][0]["text"] == expected
    assert swap.result(PATIENCE) == vector


# In the thread that generates


def test_the_own_stream_is_not_waited_for_and_goes_on(llm, vector):
    expected = complete(llm)
    with half_way(llm) as (chunks, said):
        for call in (lambda: llm.swap(vector), llm.clear, lambda: complete(llm), llm.save_state):
            with pytest.raises(BusyError, match="of this thread has the model"):
                call()
        with pytest.raises(BusyError), llm.using(vector):
            pytest.fail("the block must not be entered")
        said.extend(chunks)
    assert "".join(said) == expected
    assert llm.swap(vector) == vector


def test_callbacks_of_a_generation_neither_exchange_nor_close_nor_step_another(llm, vector):
    expected, refusals = complete(llm), []
    other = llm("xyz", max_tokens=LENGTH, stream=True)

    def intrude(tokens, logits):
        for call in (lambda: llm.swap(vector), llm.close, lambda: llm.using(vector).__enter__()):
            with pytest.raises(BusyError, match="in the midst of a generation"):
                call()
        refusals.append(1)
        return logits

    processors = LogitsProcessorList([intrude])
    result = llm("abc def", max_tokens=LENGTH, temperature=0.0, logits_processor=processors)
    assert result["choices"][0]["text"] == expected
    assert len(refusals) == LENGTH
    other.close()


def test_a_generation_that_raises_releases_the_model(llm, vector):
    def fail(tokens, logits):
        raise RuntimeError("from a callback")

    with pytest.raises(ValueError, match="exceed context window"):
        llm("x" * 1000, max_tokens=1)
    with pytest.raises(TypeError):
        llm.create_completion("x", no_such_option=1)
    with pytest.raises(RuntimeError):
        llm.embed("x")  # the model was not loaded for it
    stopping = [lambda tokens, logits: fail(tokens, logits)]
    with pytest.raises(RuntimeError, match="from a callback"):
        list(llm.generate([1, 2, 3], stopping_criteria=lambda *args: stopping[0](*args)))
    assert start(llm.swap, vector).result(PATIENCE) == vector


@pytest.mark.parametrize("end", ["close", "drop"])
def test_an_abandoned_stream_releases_the_model(llm, vector, end):
    chunks = llm("abc def", max_tokens=LENGTH, temperature=0.0, stream=True)
    next(chunks)
    if end == "close":
        chunks.close()
    del chunks
    gc.collect()
    assert start(llm.swap, vector).result(PATIENCE) == vector


def test_a_stream_that_was_never_started_holds_nothing(llm, vector, load, tiny_bundle):
    chunks = stream(llm)
    assert start(llm.swap, vector).result(PATIENCE) == vector
    assert "".join(chunks) == complete(load(tiny_bundle, vector))


@pytest.mark.parametrize("kind", ["completion", "chat", "generate"])
def test_a_stream_may_be_consumed_by_other_threads(llm, vector, kind):
    def begin():
        if kind == "completion":
            return llm("abc def", max_tokens=LENGTH, temperature=0.0, stream=True)
        if kind == "chat":
            messages = [{"role": "user", "content": "abc"}]
            return llm.create_chat_completion(messages, max_tokens=LENGTH, temperature=0.0, stream=True)
        return llm.generate(list(b"abc def"), temp=0.0)

    def said(item):
        return item if kind == "generate" else item["choices"][0].get("text", item["choices"][0].get("delta"))

    alone = begin()
    expected = [said(next(alone)) for _ in range(10)]
    alone.close()

    chunks = begin()
    items = [next(chunks)]
    for _ in range(4):
        items.append(start(next, chunks).result(PATIENCE))
        items.append(next(chunks))
    swap = start(llm.swap, vector)
    assert blocked(swap)
    items.append(start(next, chunks).result(PATIENCE))
    assert [said(item) for item in items] == expected
    start(chunks.close).result(PATIENCE)
    assert swap.result(PATIENCE) == vector


def test_generations_and_exchanges_of_many_threads_never_mix(llm, load, tiny_bundle):
    choices = [MicroVector.random(llm.bases.basis(numbers=13), 0.5, seed=seed) for seed in range(3)]
    expected = {complete(load(tiny_bundle, choice)) for choice in choices}
    assert len(expected) == len(choices)
    llm.swap(choices[0])
    texts, stop = [], threading.Event()

    def exchange(choice):
        while not stop.is_set():
            llm.swap(choice)

    def generate():
        texts.extend("".join(stream(llm)) if i % 2 else complete(llm) for i in range(10))

    exchanges = [start(exchange, choice) for choice in choices]
    generations = [start(generate) for _ in range(2)]
    try:
        for future in generations:
            future.result(PATIENCE)
    finally:
        stop.set()
    for future in exchanges:
        future.result(PATIENCE)
    assert set(texts) <= expected
    assert len(texts) == 20


# The end of a model


@pytest.mark.parametrize("begun", [False, True])
def test_the_next_step_after_close_is_refused(llm, begun):
    chunks = llm("abc def", max_tokens=LENGTH, stream=True)
    if begun:
        next(chunks)
    start(llm.close).result(PATIENCE)  # by another thread too
    with pytest.raises(TinyLoraError, match="the model is closed"):
        next(chunks)
    chunks.close()


def test_who_waits_for_a_model_that_is_closed_is_refused(llm):
    with half_way(llm):
        waiting = start(complete, llm)
        assert blocked(waiting)
        start(llm.close).result(PATIENCE)
        with pytest.raises(TinyLoraError, match="the model is closed"):
            waiting.result(PATIENCE)


# Blocks


def test_using_restores_what_was_there(llm, vector):
    other = MicroVector.random(llm.bases.basis(numbers=13), 0.5, seed=2)
    base = complete(llm)
    with llm.using(vector) as active:
        assert active == vector == llm.vector
        with_vector = complete(llm)
        with llm.using(other.to_bytes(llm.bases.basis(numbers=13))) as inner:
            assert inner == other == llm.vector
            assert complete(llm) not in (base, with_vector)
        assert llm.vector == vector
        assert complete(llm) == with_vector
    assert llm.vector is None
    assert complete(llm) == base != with_vector


def test_a_stream_that_a_block_leaves_unfinished_is_ended(llm, vector):
    kept = []

    def leave_one():
        with llm.using(vector):
            kept.append(stream(llm))
            next(kept[0])
            raise KeyError

    with pytest.raises(KeyError):
        leave_one()
    assert llm.vector is None
    with pytest.raises(BusyError, match="has ended"):
        next(kept[0])
    assert start(llm.swap, vector).result(PATIENCE) == vector


def test_other_threads_wait_for_a_using_block(llm, vector):
    base = complete(llm)
    other = MicroVector.random(llm.bases.basis(numbers=13), 0.5, seed=2)
    with llm.using(vector):
        generation, swap = start(complete, llm), start(llm.swap, other)
        assert blocked(generation)
        assert blocked(swap)
        assert complete(llm) != base
        assert llm.vector == vector
    assert swap.result(PATIENCE) == other
    with_other = complete(llm)
    assert generation.result(PATIENCE) in (base, with_other)
    assert llm.vector == other


def test_a_stream_of_a_block_may_begin_in_another_thread(llm, vector):
    llm.swap(vector)
    expected = complete(llm)
    llm.clear()
    with llm.using(vector):
        made = llm("abc def", max_tokens=LENGTH, temperature=0.0, stream=True)
        chunks = start(list, made).result(PATIENCE)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
        assert complete(llm) == expected
    assert llm.vector is None


def test_a_block_is_that_of_a_task_and_follows_it_to_threads(llm, vector):
    base = complete(llm)
    other = MicroVector.random(llm.bases.basis(numbers=13), 0.5, seed=2)

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
    base = complete(llm)

    async def personal():
        with llm.using(vector):
            await asyncio.sleep(0.01)
            return complete(llm)

    async def intrude():
        for call in (lambda: complete(llm), llm.clear, lambda: llm.using(vector).__enter__()):
            with pytest.raises(BusyError, match="of this thread has the model"):
                call()

    async def both():
        return await asyncio.gather(personal(), intrude())

    said, _ = asyncio.run(both())
    assert said != base == complete(llm)
