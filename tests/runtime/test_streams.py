"""Streams of one model, stepped by whichever thread is free: each says what it would say alone."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_cpp import LogitsProcessorList, StoppingCriteriaList
from turns import LENGTH, MOMENT, PATIENCE, blocked, complete, start

from tinylora_edge import BusyError, MicroVector, TinyLoraError

PROMPTS = [f"{name} and the rest" for name in ("abc", "xyz", "one", "two", "three", "four", "five", "six")]


@pytest.fixture
def llm(load, tiny_bundles):
    """One strategy is enough: turns are taken before either comes in."""
    return load(tiny_bundles["scales"])


@pytest.fixture
def vector(llm):
    return MicroVector.random(llm.basis, 0.5, seed=1)


def open_stream(llm, prompt="abc def", **options):
    return llm(prompt, max_tokens=LENGTH, temperature=0.0, stream=True, **options)


def text(chunks):
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def consume(pool, streams):
    """What web servers do: every step of every stream in a pool's next free thread."""

    async def one(stream):
        loop, chunks = asyncio.get_running_loop(), []
        while (chunk := await loop.run_in_executor(pool, next, stream, None)) is not None:
            chunks.append(chunk)
        return text(chunks)

    async def everything():
        return await asyncio.gather(*(one(stream) for stream in streams), return_exceptions=True)

    return asyncio.run(everything())


@pytest.mark.parametrize("threads", [1, 4])
def test_a_pool_steps_more_streams_than_it_has_threads(llm, vector, threads):
    llm.swap(vector)
    expected = [complete(llm, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(threads) as pool:
        assert consume(pool, [open_stream(llm, prompt) for prompt in PROMPTS * 2]) == expected * 2
    assert start(llm.swap, vector, wait=False).result(PATIENCE) == vector


def test_what_is_generated_ahead_is_kept_for_the_consumer(llm, vector):
    expected, other = complete(llm), complete(llm, "xyz")
    chunks = open_stream(llm)
    first = [next(chunks), next(chunks)]
    assert start(complete, llm, "xyz").result(PATIENCE) == other
    assert complete(llm, "xyz") == other, "in the consumer's own thread too"
    assert start(llm.swap, vector, wait=False).result(PATIENCE) == vector, "nothing of it is unfinished now"
    assert text([*first, *chunks]) == expected
    with pytest.raises(StopIteration):
        next(chunks)


def test_who_is_interrupted_while_he_generates_it_ahead_ends_it(llm):
    """The interruption is his thread's. The consumer is told, and the model is free."""
    expected, armed = complete(llm), []

    def interrupted(ids, logits):
        if armed:
            armed.clear()
            raise KeyboardInterrupt
        return False

    chunks = open_stream(llm, stopping_criteria=StoppingCriteriaList([interrupted]))
    next(chunks)
    armed.append(True)
    with pytest.raises(KeyboardInterrupt):
        start(complete, llm, "xyz").result(PATIENCE)
    with pytest.raises(TinyLoraError, match="this stream was interrupted: generate again"):
        next(chunks)
    assert complete(llm) == expected


def test_an_error_that_is_thrown_into_it_ends_it(llm, vector):
    chunks = open_stream(llm)
    next(chunks)
    with pytest.raises(ValueError, match="enough"):
        chunks.throw(ValueError("enough"))
    assert start(llm.swap, vector, wait=False).result(PATIENCE) == vector
    with pytest.raises(StopIteration):
        next(chunks)


def test_a_stream_that_was_generated_ahead_may_be_closed(llm):
    chunks = open_stream(llm)
    next(chunks)
    complete(llm, "xyz")
    chunks.close()
    with pytest.raises(StopIteration):
        next(chunks)


def test_an_error_of_what_is_generated_ahead_is_the_consumers(llm):
    seen = []

    def fail(tokens, logits):
        seen.append(1)
        if len(seen) == 4:
            raise RuntimeError("from a callback")
        return False

    other = complete(llm, "xyz")
    chunks = open_stream(llm, stopping_criteria=StoppingCriteriaList([fail]))
    next(chunks)
    assert complete(llm, "xyz") == other
    with pytest.raises(RuntimeError, match="from a callback"):
        list(chunks)
    with pytest.raises(StopIteration):
        next(chunks)


def test_others_wait_for_bare_tokens_which_have_no_end(llm):
    expected = complete(llm, "xyz")
    tokens = llm.generate(list(b"abc def"), temp=0.0)
    alone = [next(tokens) for _ in range(4)]
    tokens.close()
    tokens = llm.generate(list(b"abc def"), temp=0.0)
    assert next(tokens) == alone[0]
    other = start(complete, llm, "xyz")
    assert blocked(other)
    assert [next(tokens) for _ in range(3)] == alone[1:]
    tokens.close()
    assert other.result(PATIENCE) == expected


def test_the_thread_of_bare_tokens_does_not_wait_for_itself(llm):
    expected = complete(llm, "xyz")
    tokens = llm.generate(list(b"abc def"), temp=0.0)
    next(tokens)
    assert complete(llm, "xyz") == expected
    with pytest.raises(BusyError, match="its thread began another generation"):
        next(tokens)


def test_the_state_is_saved_between_two_steps_of_a_stream(llm):
    tokens = llm.generate(list(b"abc def"), temp=0.0)
    alone = [next(tokens) for _ in range(6)]
    tokens.close()
    tokens = llm.generate(list(b"abc def"), temp=0.0)
    said = [next(tokens), next(tokens)]
    state = llm.save_state()
    waiting = start(llm.save_state)
    assert blocked(waiting), "another thread's is not between them"
    assert said + [next(tokens) for _ in range(4)] == alone
    tokens.close()
    assert waiting.result(PATIENCE).n_tokens > state.n_tokens


def test_making_a_stream_waits_for_nobody(llm):
    chunks = open_stream(llm)
    next(chunks)
    tokens = llm.generate([1, 2])
    made = open_stream(llm, "xyz")
    assert start(next, chunks).result(PATIENCE)
    for each in (made, tokens, chunks):
        each.close()


@pytest.mark.parametrize("begun", [False, True])
def test_the_next_step_after_close_is_refused(llm, begun):
    chunks = open_stream(llm)
    if begun:
        next(chunks)
    start(llm.close).result(PATIENCE)  # by another thread too
    with pytest.raises(TinyLoraError, match="the model is closed"):
        next(chunks)
    chunks.close()


def test_a_model_is_closed_between_the_steps_of_a_pool(llm):
    streams = [open_stream(llm, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        running, closed = threading.Event(), []

        def watch():
            assert running.wait(PATIENCE)
            llm.close()
            closed.append(1)

        closing = start(watch)
        next(streams[0])
        running.set()
        for found in consume(pool, streams):
            assert isinstance(found, str | TinyLoraError), found
    closing.result(PATIENCE)
    assert closed


def test_a_model_is_not_closed_inside_its_own_generation(llm):
    refusals = []

    def close(tokens, logits):
        with pytest.raises(BusyError, match="cannot be closed inside its own generation"):
            llm.close()
        refusals.append(1)
        return logits

    processors = LogitsProcessorList([close])
    assert llm("abc def", max_tokens=3, temperature=0.0, logits_processor=processors)
    assert len(refusals) == 3


def test_a_stream_that_is_dropped_while_another_thread_goes_ahead_with_it(llm, vector):
    """The dropped one is no unfinished generation of the thread that drops it, which may exchange at once."""
    expected, within, dropped = complete(llm, "xyz"), threading.Event(), threading.Event()

    def wait(tokens, logits):
        if threading.current_thread() is not threading.main_thread():
            within.set()
            assert dropped.wait(PATIENCE)
        return logits

    chunks = open_stream(llm, logits_processor=LogitsProcessorList([wait]))
    next(chunks)
    other = start(complete, llm, "xyz")
    assert within.wait(PATIENCE)
    del chunks

    def go_on():
        until = time.monotonic() + PATIENCE
        while len(llm._gate._root.waiting) < 2 and time.monotonic() < until:
            time.sleep(0.001)
        dropped.set()

    start(go_on)
    assert llm.swap(vector) == vector
    llm.clear()
    assert other.result(PATIENCE) in (expected, complete(llm, "xyz"))


def test_a_stream_that_is_being_dropped_is_nobody_else_s(llm):
    """While its last reference goes, and its steps are closed, another thread finds no stream any more."""
    closing, found = threading.Event(), []

    def steps():
        try:
            yield 1
            yield 2
        finally:
            closing.set()
            time.sleep(MOMENT)  # another thread may run
            found.append(llm._gate._root.child is not None)

    stream = llm._stream(steps(), whole=True)
    next(stream)
    other = start(lambda: closing.wait(PATIENCE) and complete(llm, "xyz"))
    del stream
    assert found == [True], "it had the model until it was closed"
    assert other.result(PATIENCE) == complete(llm, "xyz")
    assert start(llm.clear, wait=False).result(PATIENCE) is None
