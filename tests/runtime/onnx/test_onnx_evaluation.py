"""Evaluation in ONNX Runtime: the same as prompt by prompt, and the command that does it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_bundles
import pytest

from tinylora_edge import MicroVector, TinyLoraError, VectorError, runtime
from tinylora_edge.runtime.evaluation import evaluate
from tinylora_edge.runtime.llama.batch import batch_for
from tinylora_edge.runtime.onnx.batch import OnnxBatch
from tinylora_edge.runtime.onnx.model import TinyLoraOnnx
from tinylora_edge.tasks import Completion, Sample, Task, load_task

LIMIT = 9


@pytest.fixture(scope="module")
def llm() -> Iterator[TinyLoraOnnx]:
    with runtime.load(onnx_bundles.tiny(), engine="onnx", n_ctx=200, n_threads=1) as opened:
        yield opened


@dataclass(frozen=True)
class RawSample(Sample):
    raw: bool = True


@pytest.fixture
def samples() -> list[Sample]:
    texts: list[Sample] = [RawSample("one two " * (1 + i % 3) + str(i)) for i in range(7)]
    return [*texts, Sample("three"), Sample(({"role": "user", "content": "Hello"},))]


def letters(completion: Completion, sample: Sample) -> float:
    return sum(c.isascii() and c.isalpha() for c in completion.text) / max(len(completion.text), 1)


@pytest.mark.parametrize("user", [None, 0, 1])
def test_answers_are_those_of_single_runs(llm: TinyLoraOnnx, samples: list[Sample], user: int | None) -> None:
    vector = None if user is None else onnx_bundles.vectors(onnx_bundles.tiny(), 2)[user]
    batch = OnnxBatch(llm, sequences=3)
    batch.swap(vector)
    counts: list[int] = []
    found = batch.answer(samples, max_tokens=LIMIT, answered=counts.append)
    assert counts == [3, 3, 3]
    with llm.using(vector or MicroVector.zeros(llm.basis)):
        for sample, answer in zip(samples, found, strict=True):
            text = sample.text
            if not isinstance(sample, RawSample):
                text = llm.apply_chat_template([{"role": "user", "content": text}])
            alone = list(llm.generate(llm.tokenize(text), max_tokens=LIMIT))
            ended = len(alone) < LIMIT
            assert answer == Completion(llm.detokenize(alone), ended, len(alone) + ended)
    assert llm.vector is None


def test_a_text_is_a_message_of_the_user_unless_it_is_raw(llm: TinyLoraOnnx, tmp_path: Path) -> None:
    batch = OnnxBatch(llm)
    chat = batch.encode(Sample(({"role": "user", "content": "Hello"},)))
    assert llm.detokenize(chat) == "[user] Hello\n[assistant] "
    assert batch.encode(Sample("Hello")) == chat
    assert batch.encode(RawSample("Hello")) == llm.tokenize("Hello")
    copy = shutil.copytree(onnx_bundles.without_template(), tmp_path / "copy")
    with runtime.load(copy, engine="onnx", n_ctx=200, n_threads=1) as bare:
        assert not bare.has_chat_template
        assert OnnxBatch(bare).encode(Sample("Hello")) == llm.tokenize("Hello")
    tokenizer = copy / "onnx" / "tokenizer_config.json"
    described = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps({**described, "chat_template": onnx_bundles.TEMPLATE}))
    with runtime.load(copy, engine="onnx", n_ctx=200, n_threads=1) as other:
        assert OnnxBatch(other).encode(Sample("Hello")) == chat


def test_a_closed_batch_says_so(llm: TinyLoraOnnx, samples: list[Sample]) -> None:
    with OnnxBatch(llm) as batch:
        assert batch.answer(samples[:1], max_tokens=1)
    for use in (
        lambda: batch.swap(None),
        lambda: batch.encode(samples[0]),
        lambda: batch.answer(samples, max_tokens=1),
        lambda: batch.answer_each([None], [], max_tokens=1),
    ):
        with pytest.raises(TinyLoraError, match="the batch is closed"):
            use()
    batch.close()
    assert llm("x", max_tokens=1), "the model stays open"


def test_evaluate(llm: TinyLoraOnnx, samples: list[Sample]) -> None:
    task = Task("letters", samples, samples, letters, max_tokens=LIMIT, temperature=1.0)
    batch = OnnxBatch(llm)
    vector, _ = onnx_bundles.vectors(onnx_bundles.tiny(), 2)
    base, ours = evaluate(batch, task, None), evaluate(batch, task, vector)
    assert base.answers != ours.answers
    np.testing.assert_array_equal(evaluate(batch, task, None).scores, base.scores)
    drawn = [evaluate(batch, task, vector, temperature=2.0, seed=seed).answers for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_vector_that_does_not_fit_leaves_the_one_before(llm: TinyLoraOnnx, samples: list[Sample]) -> None:
    batch = OnnxBatch(llm)
    before = batch.answer(samples, max_tokens=3)
    with pytest.raises(VectorError):
        batch.swap(MicroVector(np.zeros((2, 1), np.float32)))
    assert batch.answer(samples, max_tokens=3) == before


def test_the_real_model_answers_as_in_llama_cpp(smollm2_bundle: Path) -> None:
    task = load_task("list-lookup", held_out=12)
    chats = [replace(s, prompt=({"role": "user", "content": s.text},)) for s in task.held_out]
    task = replace(task, held_out=chats)
    with runtime.load(onnx_bundles.real(), engine="onnx", n_threads=1) as onnx:
        in_onnx = evaluate(OnnxBatch(onnx), task, None)
    llama = runtime.load(smollm2_bundle, engine="llama", n_ctx=64, n_threads=1)
    with batch_for(llama, task.held_out, task.max_tokens, n_threads=1) as batch:
        in_llama = evaluate(batch, task, None)
    llama.close()
    # One is float32, the other 4 bits with 8-bit activations: alike, not the same.
    same = sum(a == b for a, b in zip(in_onnx.answers, in_llama.answers, strict=True))
    assert same >= 6, list(zip(in_onnx.answers, in_llama.answers, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_population_in_one_batch(llm: TinyLoraOnnx, samples: list[Sample], temperature: float) -> None:
    """Rows of one batch, each with its vector: as one vector after the other, random numbers included."""
    vectors = [*onnx_bundles.vectors(onnx_bundles.tiny(), 2), None]
    options = {"max_tokens": LIMIT, "temperature": temperature, "seed": (3, 1)}
    batch = OnnxBatch(llm, sequences=64)
    found = batch.answer_each(vectors, samples, **options)
    tokens = batch.evaluated
    assert len({tuple(answer.text for answer in answers) for answers in found}) == 3
    for vector, answers in zip(vectors, found, strict=True):
        assert OnnxBatch(llm, sequences=3).answer_each([vector], samples, **options) == [answers]
    ends = sum(answer.tokens - answer.ended for row in found for answer in row)
    prompts = sum(len(batch.encode(sample)) for sample in samples)
    assert tokens == 3 * prompts + ends
