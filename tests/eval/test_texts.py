"""Texts without prompts in the deployed model: what begins and ends them, and earlier ones before them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_bundles
import pytest

from tinylora_edge import runtime
from tinylora_edge.eval import evaluate
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.tasks import Preamble, Sample, Task, rewards

TEXTS = (
    *("wat time u reach? i at mrt liao", "ok lor, c u there at 7", "haha sorry la, jus saw ur msg"),
    *("dun wait 4 me, i eat first k", "u got bring the umbrella anot? raining now", "later i call u k"),
)
SAMPLES = tuple(Sample("", each, raw=True) for each in TEXTS)
EARLIER = Preamble(None, SAMPLES[:4])


@pytest.fixture(params=[False, True], ids=["nothing of its own begins a text", "a token does"])
def real(request: pytest.FixtureRequest, smollm2_bundle: Path) -> Iterator[TinyLoraLlama]:
    """The real model, whose file says that nothing does, and as if it said otherwise."""
    says = {"tokenizer.ggml.add_bos_token": request.param}
    with runtime.load(smollm2_bundle, n_ctx=64, n_threads=1, kv_overrides=says) as llm:
        yield llm


def test_a_text_stands_behind_what_begins_it(real: TinyLoraLlama) -> None:
    tokens, end = real.chat_tokenizer, 2  # <|im_end|>, the file's end of a text
    (first,) = tokens.encode("") or [end]
    asked = EARLIER.before(SAMPLES[4])
    before = [token for text in TEXTS[:4] for token in (*tokens.encode_plain(text), end)]
    assert real.encode(SAMPLES[4]) == ([first], [])
    assert real.encode(asked) == ([first, *before], [])
    assert real.encode_answer(asked) == [*tokens.encode_plain(TEXTS[4]), end]
    assert first not in tokens.encode_plain("<|im_start|><|im_end|>"), "what a text spells is text"

    task = Task("texts", SAMPLES[:4], SAMPLES[4:], rewards.text)
    with real.batch([EARLIER.before(each) for each in SAMPLES], 64, n_threads=1) as batch:
        base, behind = (evaluate(batch, task, None, preamble=each) for each in (None, EARLIER))
        answers = [[real.encode_answer(each)] for each in SAMPLES[4:]]
        (found,) = batch.score_each([None], [[first, *before]] * 2, answers)
    np.testing.assert_allclose(behind.scores, [each.mean() for (each,) in found], atol=0.02)
    assert behind.mean > base.mean + 0.5, "a model learns from texts before it how the next one may be"


def test_both_engines_read_texts_alike() -> None:
    bundle = onnx_bundles.both()
    with (
        runtime.load(bundle, engine="llama", n_ctx=64, n_threads=1) as here,
        runtime.load(bundle, engine="onnx", n_threads=1) as there,
    ):
        for sample in (SAMPLES[0], EARLIER.before(SAMPLES[4])):
            assert here.encode(sample) == there.encode(sample)
            assert here.encode_answer(sample) == there.encode_answer(sample)
