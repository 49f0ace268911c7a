"""A prompt as a vector in ONNX Runtime: it learns there, too, and both engines say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest

from tinylora_edge import MicroVector, TrainError, VectorError, runtime
from tinylora_edge.runtime import TinyLoraLlama, TinyLoraOnnx
from tinylora_edge.runtime.distillation.contrast import Contrast, lists
from tinylora_edge.runtime.distillation.fitting import Fit
from tinylora_edge.runtime.distillation.lesson import Lesson
from tinylora_edge.runtime.model import PersonalizedModel
from tinylora_edge.tasks import Sample

QUESTIONS = [f"question {word}?" for word in "abcdefghijklmnop"]
SHOUT = [{"role": "system", "content": "!!!! HELLO !!!!"}]
QUICK: dict[str, Any] = {"max_tokens": 6, "sequences": 8}


@pytest.fixture(scope="module")
def onnx() -> Iterator[TinyLoraOnnx]:
    with runtime.load(onnx_bundles.tiny(), engine="onnx", n_ctx=200, n_threads=1) as opened:
        yield opened


@pytest.fixture
def llama(tiny_bundles: dict[str, Path]) -> Iterator[TinyLoraLlama]:
    with runtime.load(tiny_bundles["tiled"], engine="llama", n_ctx=64, n_threads=1) as opened:
        yield opened


def test_a_vector_comes_nearer_to_the_prompted_model(onnx: TinyLoraOnnx) -> None:
    own = MicroVector.random(onnx.basis, 0.5, seed=2)
    onnx.swap(own)
    rows: list[dict[str, Any]] = []
    found = runtime.distill(onnx, SHOUT, QUESTIONS, budget="25ktokens", report=rows.append, **QUICK)
    assert found.improved
    assert found.share == found.replacement.share > 0
    assert found.replacement.told > found.replacement.bare
    assert found.tokens == rows[-1]["tokens"] <= 25_000
    assert all(each.prompted for each in found.replacement.shown)
    assert onnx.vector is own
    onnx.clear()
    again = runtime.distill(onnx, SHOUT, QUESTIONS, budget="25ktokens", **QUICK)
    assert again.vector == found.vector, "the same seed, and the app's own vector makes no difference"


def lesson() -> Lesson:
    """Token ids alone: the tokenizers and templates of the two engines have no say."""
    rng = np.random.default_rng(0)
    answers = [rng.integers(40, 90, length, dtype=np.int32) for length in (5, 3, 6, 1, 4, 6)]
    bare = [rng.integers(40, 90, 7 + i, dtype=np.int32) for i in range(len(answers))]
    return Lesson("x", [np.concatenate([bare[0][::-1], each]) for each in bare], bare, answers)


def fitted(llm: PersonalizedModel) -> tuple[list[float], list[float], np.ndarray, float, float]:
    """What the engine says of a student and of given tokens, what is fitted, and how near it was and is."""
    given = lesson()
    student = MicroVector.random(llm.basis, 0.5, seed=3)
    with llm.batch([Sample("x" * 30, raw=True)], 40, sequences=4, n_threads=1) as batch:
        contrast = Contrast(batch, given)
        fit = Fit(llm.basis, contrast, lambda figures: None)
        for _ in range(2):
            fit.learn(contrast, lambda tokens: True)
        batch.swap(student)
        rows = batch.score(lists(given.bare), [lists([answer]) for answer in given.answers])
        scores = [float(value) for (row,) in rows for value in row]
        return contrast.divergences(student).tolist(), scores, fit.values, fit.start, fit.divergence


def test_both_engines_fit_the_same_vector(llama: TinyLoraLlama, onnx: TinyLoraOnnx) -> None:
    """The same random model in float32, as a GGUF and as a graph; llama.cpp has a KV cache of half precision.

    Measured: log-probabilities differ by .002 nats, values by .001.
    """
    vector = MicroVector.random(llama.basis, 1.0, seed=1)
    deltas = [llm.basis.delta("blk.0.attn_output.weight", vector) for llm in (llama, onnx)]
    np.testing.assert_allclose(*deltas, atol=1e-5)
    divergences, scores, values, start, end = zip(fitted(llama), fitted(onnx), strict=True)
    assert divergences[0] == pytest.approx(divergences[1], rel=0.02)
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    assert start[0] == pytest.approx(start[1], rel=0.01)
    assert end[0] == pytest.approx(end[1], rel=0.01)
    assert end[0] < 0.95 * start[0]
    np.testing.assert_allclose(*values, atol=0.02)


def test_what_cannot_be_distilled(onnx: TinyLoraOnnx) -> None:
    with pytest.raises(TrainError, match=r"the longest prompt has \d+ tokens, which with 6 .* of 200"):
        runtime.distill(onnx, "long " * 200, QUESTIONS, budget="9ktokens", **QUICK)
    with pytest.raises(TrainError, match=r"300 tokens is too small: one step takes about \d+ tokens"):
        runtime.distill(onnx, SHOUT, QUESTIONS, budget="300tokens", **QUICK)


def test_a_model_without_a_template() -> None:
    bundle = onnx_bundles.without_template()
    with (
        runtime.load(bundle, engine="onnx", n_ctx=200, n_threads=1) as onnx,
        pytest.raises(VectorError, match="chat template"),
    ):
        runtime.distill(onnx, SHOUT, QUESTIONS, budget="9ktokens", **QUICK)
