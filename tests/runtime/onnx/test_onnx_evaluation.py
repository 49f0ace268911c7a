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

from tinylora_edge import MicroVector, runtime
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.runtime.evaluation import evaluate
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
    batch = Batch(llm, n_ctx_seq=200, sequences=3)
    batch.swap(vector)
    counts: list[int] = []
    found = batch.answer(samples, max_tokens=LIMIT, answered=counts.append)
    assert sum(counts) == 9
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
    chat = llm.encode(Sample(({"role": "user", "content": "Hello"},)))[0]
    assert llm.detokenize(chat) == "[user] Hello\n[assistant] "
    assert llm.encode(Sample("Hello"))[0] == chat
    assert llm.encode(RawSample("Hello"))[0] == llm.tokenize("Hello")
    copy = shutil.copytree(onnx_bundles.without_template(), tmp_path / "copy")
    with runtime.load(copy, engine="onnx", n_ctx=200, n_threads=1) as bare:
        assert not bare.vocabulary.has_template
        assert bare.encode(Sample("Hello"))[0] == llm.tokenize("Hello")
    tokenizer = copy / "onnx" / "tokenizer_config.json"
    described = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps({**described, "chat_template": onnx_bundles.TEMPLATE}))
    with runtime.load(copy, engine="onnx", n_ctx=200, n_threads=1) as other:
        assert other.encode(Sample("Hello"))[0] == chat


def test_evaluate(llm: TinyLoraOnnx, samples: list[Sample]) -> None:
    task = Task("letters", samples, samples, letters, max_tokens=LIMIT, temperature=1.0)
    batch = Batch(llm, n_ctx_seq=200)
    vector, _ = onnx_bundles.vectors(onnx_bundles.tiny(), 2)
    base, ours = evaluate(batch, task, None), evaluate(batch, task, vector)
    assert base.answers != ours.answers
    np.testing.assert_array_equal(evaluate(batch, task, None).scores, base.scores)
    drawn = [evaluate(batch, task, vector, temperature=2.0, seed=seed).answers for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_real_model_answers_as_in_llama_cpp(smollm2_bundle: Path) -> None:
    task = load_task("list-lookup", held_out=12)
    chats = [replace(s, prompt=({"role": "user", "content": s.text},)) for s in task.held_out]
    task = replace(task, held_out=chats)
    with runtime.load(onnx_bundles.real(), engine="onnx", n_threads=1) as onnx:
        in_onnx = evaluate(onnx.batch(task.held_out, task.max_tokens), task, None)
    llama = runtime.load(smollm2_bundle, engine="llama", n_ctx=64, n_threads=1)
    with llama.batch(task.held_out, task.max_tokens, n_threads=1) as batch:
        in_llama = evaluate(batch, task, None)
    llama.close()
    # One is float32, the other 4 bits with 8-bit activations: alike, not the same.
    same = sum(a == b for a, b in zip(in_onnx.answers, in_llama.answers, strict=True))
    assert same >= 6, list(zip(in_onnx.answers, in_llama.answers, strict=True))
