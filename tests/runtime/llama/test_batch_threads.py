"""A batch that several threads call, and one that is closed while it computes: the process goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from turns import PATIENCE, blocked, start

from tinylora_edge import MicroVector, TinyLoraError
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.runtime.llama.batch import Batch
from tinylora_edge.tasks import Sample

PROMPTS = [list(text.encode()) for text in ("one two three", "one two four", "one", "quite another text")]
LONG = 1500
CLOSED = "the batch is closed: it was, or its model was"


@pytest.fixture
def llm(load: Callable[..., TinyLoraLlama], tiny_bundles: dict[str, Any]) -> Iterator[TinyLoraLlama]:
    with load(tiny_bundles["dense"], flash_attn=False) as opened:
        yield opened


def busy(batch: Batch, work: Callable[[], Any]) -> Any:
    """Start work in a thread, and come back when it computes."""
    before, future = batch.evaluated, start(work)
    until = time.monotonic() + PATIENCE
    while batch.evaluated < before + 20:
        assert time.monotonic() < until
        assert not future.done(), future.result()
        time.sleep(0.001)
    return future


def test_threads_take_turns(llm: TinyLoraLlama) -> None:
    vectors = [MicroVector.random(llm.basis, 0.4, seed=seed) for seed in range(3)]
    samples = [Sample("one two", raw=True), Sample("abc", raw=True)]
    with Batch(llm, n_ctx_seq=40, sequences=16, n_threads=2) as batch:

        def generate(seed: int) -> Any:
            found = batch.generate(PROMPTS, max_tokens=6, temperature=1.0, seed=seed)
            return [generation.tokens.tolist() for generation in found]

        def score(_: int) -> Any:
            return [row.tolist() for (row,) in batch.score(PROMPTS, [[[65, 66]]] * 4)]

        def answer(seed: int) -> Any:
            return batch.answer_each(vectors, samples, max_tokens=4, temperature=1.0, seed=seed)

        def each(_: int) -> Any:
            tokens = [np.array([65, 66], np.int32)] * 2
            return [row.tolist() for row in batch.score_each(vectors, samples, tokens)]

        work = [(call, seed) for seed in range(2) for call in (generate, score, answer, each)]
        expected = [call(seed) for call, seed in work]
        futures = [start(call, seed) for call, seed in work * 2]
        assert [future.result(PATIENCE) for future in futures] == expected * 2


@pytest.mark.parametrize("closed", ["batch", "model"])
def test_closing_stops_what_computes(llm: TinyLoraLlama, closed: str) -> None:
    batch = Batch(llm, n_ctx_seq=LONG + 20, sequences=16, n_threads=2)
    samples = [Sample("one two", raw=True)] * 2
    running = busy(batch, lambda: batch.answer_each([None] * 9, samples, max_tokens=LONG, temperature=1.0))
    waiting = start(batch.generate, PROMPTS, max_tokens=2)
    (batch if closed == "batch" else llm).close()
    for future in (running, waiting):
        with pytest.raises(TinyLoraError, match=CLOSED):
            future.result(PATIENCE)
    vector = MicroVector.zeros(llm.basis)
    answers = [np.array([65], np.int32)] * 2
    for call in (
        lambda: batch.swap(None),
        lambda: batch.generate(PROMPTS, max_tokens=2),
        lambda: batch.generate([], max_tokens=2),
        lambda: batch.score(PROMPTS, [[[65]]] * 4),
        lambda: batch.likeliest(PROMPTS, [[[65]]] * 4, 3),
        lambda: batch.answer(samples, max_tokens=2),
        lambda: batch.answer_each([vector], samples, max_tokens=2),
        lambda: batch.draw(vector, samples, max_tokens=2),
        lambda: batch.score_each([vector], samples, answers),
    ):
        with pytest.raises(TinyLoraError, match=CLOSED):
            call()
    assert batch.vector is None
    assert batch.evaluated == 0
    start(batch.close).result(PATIENCE)
    llm.close()
    batch.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
def test_a_signal_handler_may_close_the_batch_that_its_thread_waits_for(llm: TinyLoraLlama) -> None:
    batch = Batch(llm, n_ctx_seq=LONG + 20, sequences=16, n_threads=2)
    batch.generate(PROMPTS, max_tokens=2)
    before = signal.signal(signal.SIGALRM, lambda *_: batch.close())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(TinyLoraError, match=CLOSED):
            batch.generate(PROMPTS, samples=40, max_tokens=LONG, temperature=1.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not batch._lanes, "freed by the call that was stopped"


def test_a_model_is_not_freed_while_a_batch_is_made_of_it(llm: TinyLoraLlama) -> None:
    """It would compute with weights that are gone."""
    with llm._staying():
        closing = start(llm.close)
        assert blocked(closing)
        assert llm.model
    closing.result(PATIENCE)
    with pytest.raises(TinyLoraError, match="the model is closed"):
        Batch(llm, n_ctx_seq=40, sequences=2, n_threads=1)
