"""One vector on both engines: the same bytes through llama.cpp and ONNX Runtime, on the real model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import models
import numpy as np
import onnx_bundles
import onnx_models
import pytest
import smollm2

from tinylora_edge import MicroVector, runtime
from tinylora_edge.runtime import OnnxSession, TinyLoraLlama, TinyLoraOnnx
from tinylora_edge.tasks import Sample

OPTIONS = {"n_ctx": 256, "n_threads": 1}
QUESTIONS = (
    "Describe the moon in one sentence.",
    "What is the capital of France?",
    "Name three primary colours.",
    "Write a haiku about rain.",
    "How many legs does a spider have?",
    "Explain gravity to a child.",
)


@pytest.fixture(scope="module")
def llama(smollm2_gguf: Path) -> Iterator[TinyLoraLlama]:
    bundle = smollm2.f32_bundle(smollm2_gguf)
    llm = runtime.load(bundle, engine="llama", n_threads_batch=1, logits_all=True, verbose=False, **OPTIONS)
    yield llm
    llm.close()


def test_both_render_and_tokenize_a_chat_alike(llama: TinyLoraLlama) -> None:
    onnx = TinyLoraOnnx(onnx_bundles.real(), **OPTIONS)
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        rendered = onnx.chat_tokenizer.render(messages).encode()
        assert onnx.tokenize(rendered, special=True) == llama.encode(messages)[0]
    for answer in (*QUESTIONS, "<|im_end|> is text", "Größe\n"):
        sample = Sample(QUESTIONS[0], answer)
        (end,) = llama.tokenize(b"<|im_end|>", add_bos=False, special=True)
        tokens = [*llama.tokenize(answer.encode(), add_bos=False, special=False), end]
        assert onnx.encode_answer(sample) == llama.encode_answer(sample) == tokens
        assert llama.encode_answer(replace(sample, raw=True)) == [*tokens[:-1], llama.token_eos()]


def test_text_and_tokens_have_llama_cpps_signature(llama: TinyLoraLlama) -> None:
    onnx = TinyLoraOnnx(onnx_bundles.real(), **OPTIONS)
    text = "<|im_start|>Größe <|im_end|>\n".encode()
    for options in product((True, False), repeat=2):
        tokens = llama.tokenize(text, *options)
        assert onnx.tokenize(text, *options) == tokens
        for special in (True, False):
            assert onnx.detokenize(tokens, None, special) == llama.detokenize(tokens, None, special)


def test_logits_agree_within_a_hundredth_of_the_vectors_effect(llama):
    basis = llama.bases.basis(rank=8)
    frame = MicroVector.random(basis, 10, seed=11).to_bytes(basis)
    session = OnnxSession(onnx_bundles.real())
    rows = session.rows(frame)
    for prompt in smollm2.PROMPTS:
        tokens = llama.tokenize(prompt.encode(), special=True)
        llama.clear()
        base = models.llama_logits(llama, tokens)
        llama.swap(frame)
        ours = models.llama_logits(llama, tokens)
        fed = onnx_models.feeds(session.session, [tokens])
        theirs = session.run(["logits"], fed, rows)[0][0]
        effect = np.abs(ours - base).max()
        assert effect > 0.1
        assert np.abs(ours - theirs).max() <= 0.01 * effect
