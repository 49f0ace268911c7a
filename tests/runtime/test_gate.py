"""Generations and exchanges of the vector take turns between threads; none is ever torn."""

from __future__ import annotations

import gc
import threading

import pytest
from llama_cpp import LogitsProcessorList
from turns import LENGTH, PATIENCE, blocked, complete, half_way, start, stream

from tinylora_edge import BusyError, FrameError, MicroVector


@pytest.fixture
def llm(load, tiny_bundles):
    """One strategy is enough: turns are taken before either comes in."""
    return load(tiny_bundles["scales"])


@pytest.fixture
def vector(llm):
    return MicroVector.random(llm.basis, 0.5, seed=1)


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
    expected, second = (
        complete(load(tiny_bundles["scales"])),
        list(stream(load(tiny_bundles["scales"]), "xyz"))[1],
    )
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
    blocked(step)
    proceed.set()
    assert generation.result(PATIENCE) == (BusyError if refused else expected)
    assert step.result(PATIENCE) in (BusyError, second), "what was generated before the other one began"


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
