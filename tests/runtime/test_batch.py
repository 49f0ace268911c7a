"""Many sequences at once, on both engines: each is what it would be alone, under its own vector."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import models
import numpy as np
import onnx_bundles
import pytest
import support
from turns import PATIENCE, start

from tinylora_edge import BusyError, MicroVector, TinyLoraError, TrainError, VectorError
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.runtime.batch import Batch, Generation, Stopped
from tinylora_edge.runtime.model import PersonalizedModel
from tinylora_edge.tasks import Sample

PROMPTS = [list(text.encode()) for text in ("one two three", "one two four", "one", "quite another text")]
COMPLETIONS = [[[65, 66, 67], [65], list(range(40, 70))], [[257]], [], [list(range(30, 130)), [7, 7]]]
LIMIT = 7
LONG = 450  # within the model
CLOSED = "is closed"


@pytest.fixture
def llama(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> Iterator[TinyLoraLlama]:
    # float32 KV: in float16 the order of summation shows, and it is not the same for a batch
    kv = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    with load(tiny_bundle, **kv) as opened:
        yield opened


def opened(llm: PersonalizedModel, **options: Any) -> Batch:
    return Batch(llm, **{"n_ctx_seq": 130, "sequences": 3, "n_threads": 1} | options)


def vectors(llm: PersonalizedModel) -> list[MicroVector | None]:
    learned, *_, whole = support.each_size(llm.bases)
    return [MicroVector.random(learned, 1.0, seed=1), None, MicroVector.random(whole, 3.0, seed=2)]


def logits(llm: Any, tokens: list[int], vector: MicroVector | None) -> np.ndarray:
    if not isinstance(llm, TinyLoraLlama):
        return onnx_bundles.logits(onnx_bundles.tiny(), tokens, vector)
    llm.swap(vector or MicroVector.zeros(llm.bases.basis(numbers=13)))
    return models.llama_logits(llm, tokens)[-1]


def exact(llm: Any, prompt: list[int], tokens: list[int], vector: MicroVector | None, t: float) -> np.ndarray:
    found = (logits(llm, [*prompt, *tokens[:i]], vector) for i in range(len(tokens)))
    rows = [row.astype(np.float64) / (t or 1) for row in found]
    return np.stack([row - row.max() - np.log(np.exp(row - row.max()).sum()) for row in rows])


def texts(found: list[Generation]) -> list[list[int]]:
    return [generation.tokens.tolist() for generation in found]


def test_what_takes_too_long_is_given_up(llm: Any) -> None:
    with opened(llm) as batch:
        batch.until = 0.0
        with pytest.raises(Stopped):
            batch.generate(PROMPTS, max_tokens=100)
        batch.until = time.monotonic() + 3600
        assert len(batch.generate(PROMPTS, max_tokens=2)) == len(PROMPTS)


def test_a_batch_that_is_dropped_leaves_no_thread(llm: Any) -> None:
    before = set(threading.enumerate())
    opened(llm).generate(PROMPTS, max_tokens=1)
    gc.collect()
    assert set(threading.enumerate()) <= before


def test_a_batch_is_dropped_where_adapters_are_exchanged(llama: TinyLoraLlama) -> None:
    """As by the garbage collector, in a thread that has the lock: it waits for the batch's thread."""
    (batch := opened(llama)).generate(PROMPTS, max_tokens=1)

    def drop() -> None:
        with llama.adapters.lock:
            batch.close()

    start(drop).result(PATIENCE)


def test_each_row_is_what_its_user_gets_alone(llm: Any) -> None:
    users = [*vectors(llm), None]
    llm.swap(own := MicroVector.random(llm.bases.basis(numbers=13), 1.0, seed=9))
    with opened(llm, sequences=16, n_threads=2) as batch:
        found = batch.generate(PROMPTS, vectors=users, max_tokens=LIMIT)
    assert llm.vector == own
    for index, (prompt, vector, each) in enumerate(zip(PROMPTS, users, found, strict=True)):
        assert each.prompt == index
        llm.swap(vector or MicroVector.zeros(llm.bases.basis(numbers=13)))
        alone: list[int] = []
        options = {"temp": 0.0} if isinstance(llm, TinyLoraLlama) else {}
        for token in llm.generate(prompt, **options):
            alone.append(token)
            if len(alone) == LIMIT or llm.chat_tokenizer.ends(token):
                break
        tokens = each.tokens.tolist()
        assert (tokens[:-1] if each.ended else tokens) == [t for t in alone if not llm.chat_tokenizer.ends(t)]
        wanted = exact(llm, prompt, tokens, vector, 0)[range(len(tokens)), tokens]
        np.testing.assert_allclose(each.logprobs, wanted, atol=1e-3)


def test_logprobs_are_exact_at_the_sampling_temperature(llm: Any) -> None:
    temperature = 0.6
    with opened(llm) as batch:
        found = batch.generate(PROMPTS, samples=3, max_tokens=LIMIT, temperature=temperature, seed=5)
        drawn_texts = [texts([g for g in found if g.prompt == i]) for i in range(len(PROMPTS))]
        (found_scores,) = batch.score_each([None], PROMPTS, drawn_texts, temperature=temperature)
        scored = [row for rows in found_scores for row in rows]
    assert [g.prompt for g in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for each, row in zip(found, scored, strict=True):
        tokens = each.tokens.tolist()
        assert each.ended == llm.chat_tokenizer.ends(tokens[-1])
        assert each.ended or len(tokens) == LIMIT
        wanted = exact(llm, PROMPTS[each.prompt], tokens, None, temperature)[range(len(tokens)), tokens]
        np.testing.assert_allclose(each.logprobs, wanted, atol=1e-3)
        np.testing.assert_allclose(row, each.logprobs, atol=1e-3)


@pytest.mark.parametrize("samples", [1, 9])
def test_the_seed_decides_and_not_what_runs_beside(llm: PersonalizedModel, samples: int) -> None:
    found, how = [], {"samples": samples, "max_tokens": LIMIT, "temperature": 1.5}
    for sequences, threads, seed in ((2, 1, 3), (16, 1, 3), (16, 2, 3), (24, 3, 3), (16, 2, 4)):
        with opened(llm, sequences=sequences, n_threads=threads) as batch:
            found.append(texts(batch.generate(PROMPTS, seed=(seed, 1), **how)))
    assert found[0] == found[1] == found[2] == found[3] != found[4]


def test_given_completions_are_scored_exactly(llm: Any) -> None:
    users, temperature = vectors(llm), 0.6
    with opened(llm, sequences=16, n_threads=2) as batch:
        (found,) = batch.score_each(users[:1], PROMPTS, COMPLETIONS, temperature=temperature)
        under = batch.score_each(users, PROMPTS[:1], COMPLETIONS[:1], temperature=temperature)
    for p, each in enumerate(COMPLETIONS):
        assert len(found[p]) == len(each)
        for c, tokens in enumerate(each):
            wanted = exact(llm, PROMPTS[p], tokens, users[0], temperature)
            np.testing.assert_allclose(found[p][c], wanted[range(len(tokens)), tokens], atol=1e-3)
    tokens = COMPLETIONS[0][0]
    for vector, (rows,) in zip(users, under, strict=True):
        wanted = exact(llm, PROMPTS[0], tokens, vector, temperature)[range(len(tokens)), tokens]
        np.testing.assert_allclose(rows[0], wanted, atol=1e-3)


def test_a_population_is_one_vector_after_another(llm: PersonalizedModel) -> None:
    samples = [Sample(text, raw=True) for text in ("one two three", "one two four", "one")]
    users = vectors(llm)
    with opened(llm, sequences=16, n_threads=2) as batch:
        ends: list[int] = []
        found = batch.answer_each(users, samples, max_tokens=LIMIT, answered=lambda: ends.append(1))
        assert len(ends) == len(users) * len(samples)
        assert len({tuple(a.text for a in answers) for answers in found}) == 3
        for vector, answers in zip(users, found, strict=True):
            assert batch.answer_each([vector], samples, max_tokens=LIMIT) == [answers]
        prompts, before = batch.encode(samples), batch.evaluated
        found = batch.answer_each([None, users[0]], samples[:2], max_tokens=LIMIT)
        # The last token of an answer is drawn, and what prompts share is evaluated once a vector.
        answers = sum(answer.tokens - 1 for row in found for answer in row)
        assert batch.evaluated - before <= answers + 2 * sum(map(len, prompts[:2]))


def test_what_cannot_be_done_is_refused_before_anything_runs(llm: PersonalizedModel) -> None:
    unfit = MicroVector(np.zeros(99, np.float32))
    with opened(llm, n_ctx_seq=40) as batch:
        for prompts, completions, temperature, message in (
            ([[1]], [], 1.0, "1 prompts need as many lists"),
            ([[1]], [[[2], []]], 1.0, "completion 1 of prompt 0 is empty"),
            ([[1], []], [[[2]], [[2]]], 1.0, "prompt 1 is empty"),
            ([[1], [1] * 35], [[[2]], [[2] * 7]], 1.0, r"prompt 1 has 35 tokens.* 7 more pass the 40"),
            ([[1]], [[[2]]], 0.0, "above 0, not at 0"),
        ):
            with pytest.raises(VectorError, match=message):
                batch.score_each([None], prompts, completions, temperature=temperature)
        for call, message in (
            (lambda: batch.generate([[1], []], max_tokens=2), "prompt 1 is empty"),
            (lambda: batch.generate([[1] * 39], max_tokens=2), "raise n_ctx_seq"),
            (lambda: batch.generate([[1]], vectors=[], max_tokens=2), "1 prompts need as many vectors"),
            (lambda: batch.generate([[1]], vectors=[unfit], max_tokens=2), "99 numbers"),
            (lambda: batch.generate([[1]], max_tokens=0), "max_tokens is 0"),
            (lambda: batch.generate([[1]], max_tokens=2, temperature=-1.0), "temperature -1.0"),
            (lambda: batch.generate([[1]], vectors=[b"bytes"], max_tokens=2), "a MicroVector, not bytes"),
            (lambda: llm.batch([Sample("x" * 20_000, raw=True)], 1), "longest prompt has 20000 tokens"),
            (lambda: llm.batch([], 1), "at least one sample"),
            (lambda: llm.batch([Sample("x")], 1, sequences=0), "0 sequences runs nothing"),
        ):
            with pytest.raises((VectorError, TrainError), match=message):
                call()
        with pytest.raises(BusyError):  # it would empty rows that are being evaluated
            batch.generate([[1]], max_tokens=2, answered=lambda: batch.generate([[1]], max_tokens=2))
        assert (batch.generate([], max_tokens=2), batch.score_each([None], [], [])) == ([], [[]])
        assert batch.score_each([None], [[1]], [[]]) == [[[]]]


def test_threads_take_turns(llm: PersonalizedModel) -> None:
    samples = [Sample("one two", raw=True), Sample("abc", raw=True)]
    with opened(llm, sequences=16, n_threads=2) as batch:

        def generate(seed: int) -> Any:
            return texts(batch.generate(PROMPTS, max_tokens=6, temperature=1.0, seed=seed))

        def score(_: int) -> Any:
            return [row.tolist() for (row,) in batch.score_each([None], PROMPTS, [[[65, 66]]] * 4)[0]]

        def answer(_: int) -> Any:
            return batch.answer_each(vectors(llm), samples, max_tokens=4)

        work = [(call, seed) for seed in range(2) for call in (generate, score, answer)]
        expected = [call(seed) for call, seed in work]
        futures = [start(call, seed) for call, seed in work * 2]
        assert [future.result(PATIENCE) for future in futures] == expected * 2


@pytest.mark.parametrize("closed", ["batch", "model"])
def test_closing_stops_what_computes(llm: PersonalizedModel, closed: str) -> None:
    batch = opened(llm, n_ctx_seq=LONG + 20, sequences=16, n_threads=2)
    options: Any = {"max_tokens": LONG, "temperature": 1.0, "samples": 40}
    running = start(batch.generate, PROMPTS, **options)
    support.wait_until(lambda: batch.evaluated >= 20)
    waiting = start(batch.generate, PROMPTS, max_tokens=2)
    (batch if closed == "batch" else llm).close()
    for future in (running, waiting):
        with pytest.raises(TinyLoraError, match=CLOSED):
            future.result(PATIENCE)
    for call in (
        lambda: batch.generate([], max_tokens=2),
        lambda: batch.score_each([None], PROMPTS, [[[65]]] * 4),
        lambda: batch.answer_each([None], [Sample("x")], max_tokens=2),
    ):
        with pytest.raises(TinyLoraError, match=CLOSED):
            call()
    start(batch.close).result(PATIENCE)
    llm.close()
    batch.close()
    with pytest.raises(TinyLoraError, match="the model is closed"):
        opened(llm)


def test_a_failure_stops_the_others_and_is_forgotten(llama: TinyLoraLlama) -> None:
    with opened(llama, sequences=16, n_threads=2) as batch:
        whole = texts(batch.generate(PROMPTS, samples=2, max_tokens=LIMIT))
        engine: Any = batch._loop.engine
        engine.evaluate, real = lambda parts: 1 / 0, engine.evaluate  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            batch.generate(PROMPTS, samples=40, max_tokens=LIMIT)
        engine.evaluate = real  # type: ignore[method-assign]
        assert texts(batch.generate(PROMPTS, samples=2, max_tokens=LIMIT)) == whole
