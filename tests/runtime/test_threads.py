"""Calls, streams and exchanges of one model from any threads: each gets its turn, and its own vector."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import support
from llama_cpp import LogitsProcessorList
from turns import LENGTH, PATIENCE, blocked, complete, start, stream

from tinylora_edge import BusyError, MicroVector, TinyLoraError
from tinylora_edge.runtime import Pool, TinyLoraOnnx
from tinylora_edge.runtime.engine import Part
from tinylora_edge.runtime.loop import Generating, Loop
from tinylora_edge.runtime.model import Put


@pytest.fixture
def vector(llm: Any) -> MicroVector:
    return MicroVector.random(llm.bases.basis(numbers=13), 0.5, seed=1)


@pytest.fixture
def other(llm: Any) -> MicroVector:
    return MicroVector.random(llm.bases.basis(numbers=13), 0.5, seed=2)


def test_thirty_streams_of_slow_clients_on_few_threads_all_end_right(llm: Any) -> None:
    """As web frameworks step them: each step of a stream in whichever thread of a pool is free."""
    expected = complete(llm)

    async def read(pool: ThreadPoolExecutor) -> str:
        loop, chunks, text = asyncio.get_running_loop(), stream(llm), ""
        while (piece := await loop.run_in_executor(pool, next, chunks, None)) is not None:
            text += piece
            await asyncio.sleep(0.001)
        return text

    async def all_of_them(threads: int) -> list[str]:
        with ThreadPoolExecutor(threads) as pool:
            return await asyncio.gather(*(read(pool) for _ in range(15)))

    for threads in (2, 4):
        assert asyncio.run(all_of_them(threads)) == [expected] * 15


def test_an_answer_ends_with_the_vector_that_it_began_under(llm: Any, vector: MicroVector) -> None:
    base = complete(llm)
    chunks = stream(llm)
    read = [next(chunks)]
    llm.swap(vector)  # of the same thread: nobody waits for a reader
    assert complete(llm) != base
    assert "".join([*read, *chunks]) == base
    later = llm("abc def", max_tokens=LENGTH, temperature=0.0, stream=True)
    llm.clear()
    assert "".join(c["choices"][0]["text"] for c in later) != base, "made before it, begun after it"
    assert complete(llm) == base


def test_generations_and_exchanges_of_many_threads_never_mix(llm, vector, other):
    expected = set()
    for choice in (vector, other):
        with llm.using(choice):
            expected.add(complete(llm))
    assert len(expected) == 2
    llm.swap(vector)
    texts, stop = [], threading.Event()

    def exchange(choice: MicroVector) -> None:
        while not stop.is_set():
            llm.swap(choice)

    def generate() -> None:
        texts.extend("".join(stream(llm)) if i % 2 else complete(llm) for i in range(10))

    exchanges = [start(exchange, choice) for choice in (vector, other)]
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


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_stream_that_is_left_frees_the_model(llm: Any, end: str) -> None:
    chunks = llm("abc def", max_tokens=200, temperature=1.0, stream=True)
    next(chunks)
    if end == "close":
        chunks.close()
        assert next(chunks, None) is None
    del chunks
    gc.collect()
    assert complete(llm) == complete(llm)


def test_a_reader_of_a_stream_that_another_thread_closes_goes_on(onnx: Any, held: Any) -> None:
    with held("model"):
        reader = start(next, chunks := onnx.generate([1, 2]), None)
        assert blocked(reader)
        chunks.close()
        assert reader.result(PATIENCE) is None


def test_only_a_callback_of_a_generation_is_refused(llama: Any) -> None:
    vector = MicroVector.random(llama.bases.basis(numbers=13), 0.5, seed=1)
    expected, refusals = complete(llama), []
    beside = llama("xyz", max_tokens=LENGTH, stream=True)

    def intrude(tokens: Any, logits: Any) -> Any:
        calls = (
            lambda: llama.swap(vector),
            llama.clear,
            llama.close,
            lambda: llama.using(vector).__enter__(),
            lambda: complete(llama),
            lambda: next(beside),
        )
        for call in calls:
            with pytest.raises(BusyError):
                call()
        refusals.append(1)
        return logits

    processors = LogitsProcessorList([intrude])
    result = llama("abc def", max_tokens=LENGTH, temperature=0.0, logits_processor=processors)
    assert result["choices"][0]["text"] == expected
    assert len(refusals) == LENGTH

    def fail(tokens: Any, logits: Any) -> Any:
        raise RuntimeError("from a callback")

    with pytest.raises(RuntimeError, match="from a callback"):
        list(llama.generate([1, 2, 3], stopping_criteria=fail))
    with pytest.raises(RuntimeError):
        llama.embed("x")  # the model was not loaded for it
    assert complete(llama) == expected


def test_a_block_has_its_vector_and_others_have_theirs(llm, vector, other):
    base = complete(llm)
    with llm.using(vector) as active:
        assert active == vector == llm.vector
        with_vector = complete(llm)
        assert start(complete, llm).result(PATIENCE) == base, "another thread is in no block"
        with llm.using(other.to_bytes(llm.bases.basis(numbers=13))) as inner:
            assert inner == other == llm.vector
            assert complete(llm) not in (base, with_vector)
        assert llm.vector == vector
        kept = stream(llm)
        read = [next(kept)]
        assert start(llm.swap, other).result(PATIENCE) == other
        assert complete(llm) == with_vector
        llm.swap(other)  # for the rest of the block
        assert complete(llm) != with_vector
    assert "".join([*read, *kept]) == with_vector
    with pytest.raises(KeyError), llm.using(vector):
        raise KeyError
    assert llm.vector == other
    llm.clear()
    assert complete(llm) == base != with_vector


def test_a_block_is_that_of_a_task_and_follows_it_to_threads(llm, vector, other):
    base = complete(llm)

    async def personal(mine: MicroVector) -> tuple[str, str, Any]:
        with llm.using(mine):
            first = await asyncio.to_thread(complete, llm)
            await asyncio.sleep(0.01)
            return first, await asyncio.to_thread(complete, llm), llm.vector

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(personal(vector), personal(other), asyncio.to_thread(complete, llm))

    *personalized, beside = asyncio.run(all_of_them())
    for (text, again, active), mine in zip(personalized, (vector, other), strict=True):
        assert text == again != base
        assert active == mine
    assert beside == base
    assert llm.vector is None


@pytest.mark.parametrize("begun", [False, True])
def test_a_stream_of_a_closed_model_ends_with_the_error(llm: Any, begun: bool) -> None:
    chunks = llm("abc def", max_tokens=200, temperature=0.0, stream=True)
    if begun:  # and not over: it does not wait for its reader
        begin, owner = chunks._begin, llm._loop if isinstance(llm, TinyLoraOnnx) else llm._thread

        def begin_slowly(put: Put) -> Any:
            return begin(lambda *item: put(*item) or support.wait_until(lambda: owner._closed))

        chunks._begin = begin_slowly
        next(chunks)
    start(llm.close).result(PATIENCE)  # by another thread too
    with pytest.raises(TinyLoraError, match="the model is closed"):
        list(chunks)
    chunks.close()


def test_a_loop_that_its_own_thread_closes_frees_its_engine(llm: Any) -> None:
    """As the garbage collector does, in whichever thread it runs."""
    engine = llm.engine(rows=1, n_ctx=64, n_threads=1)
    loop = Loop(engine, closed="the loop is closed")
    how: Any = {"most": 9, "draw": lambda _: None, "ends": lambda _: True}
    loop.submit(Generating(tokens=[1, 2], finished=lambda *_: loop.close(), **how))
    loop._thread.join(PATIENCE)
    with pytest.raises(TinyLoraError, match="closed"):
        engine.evaluate([Part(0, [1])])


def test_who_waits_for_a_model_that_is_closed_is_refused(llama: Any, monkeypatch: Any) -> None:
    reached, go_on, free = threading.Event(), threading.Event(), type(llama)._close_engine

    def pause(tokens: Any, logits: Any) -> Any:
        reached.set()
        assert go_on.wait(PATIENCE)
        return logits

    first = start(llama, "abc", max_tokens=9, logits_processor=LogitsProcessorList([pause]))
    assert reached.wait(PATIENCE)
    freed = []
    monkeypatch.setattr(type(llama), "_close_engine", lambda self: freed.append(1) or free(self))
    waiting, closing, again = start(complete, llama), start(llama.close), start(llama.close)
    with pytest.raises(TinyLoraError, match="the model is closed"):
        waiting.result(PATIENCE)
    go_on.set()
    closing.result(PATIENCE)
    again.result(PATIENCE)
    assert freed == [1]
    with pytest.raises(TinyLoraError, match="the model is closed"):
        first.result(PATIENCE)


def test_a_close_that_was_interrupted_is_done_by_the_next(llm: Any, monkeypatch: Any) -> None:
    with Pool(llm, n_ctx=64), monkeypatch.context() as patched:
        patched.setattr(Loop, "close", lambda self: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            llm.close()
        patched.undo()
        llm.close()
    assert "closed" in repr(llm)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_fork_has_no_threads_and_is_told_so(llm: Any) -> None:
    """As multiprocessing makes one: it would wait for ever."""
    complete(llm)
    with Pool(llm, n_ctx=64) as pool:
        for call in (lambda: complete(llm), lambda: asyncio.run(pool.chat("x", max_tokens=1))):
            read, write = os.pipe()
            if not (child := os.fork()):
                signal.alarm(30)
                try:
                    call()
                except BaseException as error:
                    os.write(write, str(error).encode())
                os._exit(0)
            os.close(write)
            with open(read, "rb") as pipe:
                assert b"this process is a fork" in pipe.read()
            os.waitpid(child, 0)
    assert complete(llm)
