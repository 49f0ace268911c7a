"""Generations and exchanges of the vector take turns between threads; none is ever torn."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager

import pytest
from llama_cpp import LogitsProcessorList

from tinylora_edge import BusyError, FrameError, MicroVector

PATIENCE = 20.0  # seconds until a thread counts as stuck; nothing here takes one
MOMENT = 0.05  # seconds given to a thread that must not get on; too short a time hides errors, and makes none
LENGTH = 40


@pytest.fixture
def llm(load, tiny_bundles):
    """One strategy is enough: turns are taken before either comes in."""
    return load(tiny_bundles["scales"])


@pytest.fixture
def vector(llm):
    return MicroVector.random(llm.basis, 0.5, seed=1)


def start(function, *args, **kwargs):
    """Run in a thread of its own; its outcome comes as a future."""
    future = Future()

    def run():
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def blocked(future):
    time.sleep(MOMENT)
    return not future.done()


def complete(llm, prompt="abc def"):
    return llm(prompt, max_tokens=LENGTH, temperature=0.0)["choices"][0]["text"]


def stream(llm, prompt="abc def"):
    for chunk in llm(prompt, max_tokens=LENGTH, temperature=0.0, stream=True):
        yield chunk["choices"][0]["text"]


@contextmanager
def half_way(llm):
    """A stream after its first chunks, and what they said."""
    chunks = stream(llm)
    said = [next(chunks), next(chunks)]
    try:
        yield chunks, said
    finally:
        chunks.close()


# A swap from another thread


@pytest.mark.parametrize("action", ["swap", "clear", "using"])
def test_an_exchange_waits_for_a_streaming_generation(llm, vector, action):
    old = MicroVector.random(llm.basis, 0.5, seed=2)
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


@pytest.mark.parametrize("options", [{"wait": False}, {"timeout": 0.01}, {"timeout": 0}])
def test_an_exchange_may_refuse_to_wait(llm, vector, options):
    expected = complete(llm)
    with half_way(llm) as (chunks, said):
        for exchange in (lambda: llm.swap(vector, **options), lambda: llm.clear(**options)):
            with pytest.raises(BusyError):
                start(exchange).result(PATIENCE)
        said.extend(chunks)
    assert "".join(said) == expected
    assert llm.vector is None
    assert start(llm.swap, vector, **options).result(PATIENCE) == vector  # now nothing is in its way


def test_a_refused_vector_releases_the_model(llm, vector):
    with pytest.raises(FrameError):
        llm.swap(b"")
    assert start(llm.swap, vector, wait=False).result(PATIENCE) == vector


# In the thread that generates


def test_an_exchange_inside_the_own_stream_is_refused_and_the_stream_goes_on(llm, vector):
    expected = complete(llm)
    with half_way(llm) as (chunks, said):
        for exchange in (lambda: llm.swap(vector), llm.clear, lambda: llm.swap(vector, timeout=0.01)):
            with pytest.raises(BusyError):
                exchange()
        with pytest.raises(BusyError), llm.using(vector):
            pytest.fail("the block must not be entered")
        said.extend(chunks)
    assert "".join(said) == expected
    assert llm.swap(vector) == vector


def test_an_exchange_from_a_callback_of_the_generation_is_refused(llm, vector):
    expected = complete(llm)
    refusals = []

    def swap(tokens, logits):
        with pytest.raises(BusyError):
            llm.swap(vector)
        refusals.append(1)
        return logits

    result = llm("abc def", max_tokens=LENGTH, temperature=0.0, logits_processor=LogitsProcessorList([swap]))
    assert result["choices"][0]["text"] == expected
    assert len(refusals) == LENGTH


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
    assert start(llm.swap, vector, wait=False).result(PATIENCE) == vector


# Streams that are not consumed to their end, or not where they began


@pytest.mark.parametrize("end", ["close", "drop"])
def test_an_abandoned_stream_releases_the_model(llm, vector, end):
    chunks = llm("abc def", max_tokens=LENGTH, temperature=0.0, stream=True)
    next(chunks)
    if end == "close":
        chunks.close()
    del chunks
    gc.collect()
    assert start(llm.swap, vector, wait=False).result(PATIENCE) == vector


def test_a_stream_that_was_never_started_holds_nothing(llm, vector, load, tiny_bundles):
    chunks = stream(llm)
    assert start(llm.swap, vector, wait=False).result(PATIENCE) == vector
    assert "".join(chunks) == complete(load(tiny_bundles["scales"], vector))


@pytest.mark.parametrize("kind", ["completion", "chat", "generate"])
def test_a_stream_may_be_consumed_by_other_threads(llm, vector, kind):
    """Web servers take every chunk of a stream in whichever thread is free."""

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


def attempt(function, *args):
    """The result, or that it was refused: what must never come is something in between."""
    try:
        return function(*args)
    except BusyError:
        return BusyError


def test_a_second_generation_of_the_thread_does_not_garble_an_unfinished_stream(llm, load, tiny_bundles):
    expected, expected_other = (complete(load(tiny_bundles["scales"]), text) for text in ("abc def", "xyz"))
    with half_way(llm) as (chunks, said):
        other = attempt(complete, llm, "xyz")
        rest = attempt(list, chunks)
    assert other in (expected_other, BusyError)
    assert rest is BusyError or "".join(said + rest) == expected
    assert complete(llm) == expected


def test_a_stream_is_not_stepped_in_the_midst_of_another_generation(llm, load, tiny_bundles):
    """The thread that began the stream generates something else; another thread takes the next chunk."""
    expected = complete(load(tiny_bundles["scales"]))
    ended, running, proceed = threading.Event(), threading.Event(), threading.Event()
    chunks = stream(llm, "xyz")

    def pause(tokens, logits):
        running.set()
        assert proceed.wait(PATIENCE)
        return logits

    def begin_and_generate():
        next(chunks)
        processors = LogitsProcessorList([pause])
        try:
            result = llm("abc def", max_tokens=LENGTH, temperature=0.0, logits_processor=processors)
        finally:
            ended.set()
            running.set()
        return result["choices"][0]["text"]

    generation = start(attempt, begin_and_generate)
    assert running.wait(PATIENCE)
    refused = ended.is_set()  # the thread's second generation may be refused instead
    step = start(attempt, next, chunks)
    stepped = not refused and not blocked(step)
    proceed.set()
    assert generation.result(PATIENCE) == (BusyError if refused else expected)
    assert step.result(PATIENCE) is BusyError or not stepped


def test_generations_of_many_threads_each_say_the_right_thing(llm, vector):
    llm.swap(vector)
    prompts = [f"{name} and the rest" for name in ("abc", "xyz", "one", "two", "three", "four")]
    expected = [complete(llm, prompt) for prompt in prompts]
    assert len(set(expected)) == len(prompts)
    for run in (complete, lambda *args: "".join(stream(*args))):
        futures = [start(run, llm, prompt) for prompt in prompts * 3]
        assert [future.result(PATIENCE) for future in futures] == expected * 3


def test_generations_and_exchanges_of_many_threads_never_mix(llm, load, tiny_bundles):
    """Every text is that of exactly one of the vectors."""
    choices = [MicroVector.random(llm.basis, 0.5, seed=seed) for seed in range(3)]
    expected = {complete(load(tiny_bundles["scales"], choice)) for choice in choices}
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


# using


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
