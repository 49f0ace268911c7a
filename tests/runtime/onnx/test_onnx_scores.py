"""Token sequences in a batch of ONNX Runtime: scored as plain ONNX Runtime scores them, and generated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest

from tinylora_edge import MicroVector, TinyLoraError, VectorError, runtime
from tinylora_edge.runtime import TinyLoraOnnx
from tinylora_edge.runtime.onnx.batch import OnnxBatch

PROMPTS = [[72, 101, 108], [72, 101, 108, 108, 111, 32, 116], [65], [72, 101]]
COMPLETIONS = [[[111, 32]], [[104, 101, 114, 101], [97]], [], [[121]]]


@pytest.fixture(scope="module", params=["default", "required"])
def bundle(request: pytest.FixtureRequest) -> Path:
    return onnx_bundles.tiny(request.param)


@pytest.fixture(scope="module")
def llm(bundle: Path) -> Iterator[TinyLoraOnnx]:
    with runtime.load(bundle, engine="onnx", n_ctx=64, n_threads=1) as opened:
        yield opened


@pytest.fixture(params=[None, 0])
def vector(request: pytest.FixtureRequest, bundle: Path) -> MicroVector | None:
    return None if request.param is None else onnx_bundles.vectors(bundle, 1)[0]


def plain(bundle: Path, prompt: list[int], completion: list[int], vector: MicroVector | None) -> np.ndarray:
    """Log-probabilities of the whole vocabulary wherever a token of a completion stands."""
    rows = [
        onnx_bundles.logits(bundle, prompt + completion[:i], vector).astype(np.float64)
        for i in range(len(completion))
    ]
    return np.stack([row - row.max() - np.log(np.exp(row - row.max()).sum()) for row in rows])


def pairs() -> list[tuple[int, int, list[int], list[int]]]:
    return [(p, c, PROMPTS[p], tokens) for p, each in enumerate(COMPLETIONS) for c, tokens in enumerate(each)]


def test_scores_are_those_of_plain_onnx_runtime(
    llm: TinyLoraOnnx, bundle: Path, vector: MicroVector | None
) -> None:
    among = [[np.array([[5, 9]] * len(tokens), np.int32) for tokens in each] for each in COMPLETIONS]
    with OnnxBatch(llm, sequences=3) as batch:
        batch.swap(vector)
        found = batch.score(PROMPTS, COMPLETIONS)
        others = batch.score(PROMPTS, COMPLETIONS, among=among)
        likeliest = batch.likeliest(PROMPTS, COMPLETIONS, 4)
        assert [len(each) for each in found] == [1, 2, 0, 1]
        for p, c, prompt, completion in pairs():
            exact = plain(bundle, prompt, completion, vector)
            np.testing.assert_allclose(
                found[p][c], exact[range(len(completion)), completion], atol=1e-3, rtol=1e-4
            )
            np.testing.assert_allclose(others[p][c], exact[:, [5, 9]], atol=1e-3, rtol=1e-4)
            tokens, logprobs = likeliest[p][c]
            assert tokens.shape == logprobs.shape == (len(completion), 4)
            assert tokens.dtype == np.int32
            np.testing.assert_allclose(
                np.sort(logprobs, axis=1), np.sort(exact, axis=1)[:, -4:], atol=1e-3, rtol=1e-4
            )
            np.testing.assert_allclose(
                logprobs, np.take_along_axis(exact, tokens, axis=1), atol=1e-3, rtol=1e-4
            )
        assert batch.evaluated == 3 * sum(len(prompt) + len(tokens) for _, _, prompt, tokens in pairs())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_generated_has_the_token_that_ended_it(
    llm: TinyLoraOnnx, vector: MicroVector | None, temperature: float
) -> None:
    """A random model ends where it may: its likeliest token is made the end-of-sequence token."""
    model: Any = llm._model
    with OnnxBatch(llm, sequences=3) as batch:
        batch.swap(vector)
        prompts = [prompt for prompt in PROMPTS if prompt]
        free = batch.generate(prompts, max_tokens=9, temperature=temperature, seed=(4, 1))
        again = batch.generate(prompts, max_tokens=9, temperature=temperature, seed=(4, 1))
        assert [each.tokens.tolist() for each in free] == [each.tokens.tolist() for each in again]
        end, before = int(free[0].tokens[3]), model.eos
        model.eos = frozenset({end})
        try:
            found = batch.generate(prompts, max_tokens=9, temperature=temperature, seed=(4, 1))
        finally:
            model.eos = before
    first = free[0].tokens.tolist().index(end)
    assert found[0].tokens.tolist() == free[0].tokens[: first + 1].tolist()
    assert found[0].tokens.dtype == np.int32
    for each in found:
        assert not each.exploded
        assert each.ended == (end in each.tokens.tolist()) == (each.tokens[-1] == end)
        assert each.ended or len(each.tokens) == 9


def test_what_explodes_has_no_scores(llm: TinyLoraOnnx) -> None:
    huge = MicroVector(np.full((llm.basis.groups, llm.basis.u), 1e30, np.float32))
    with OnnxBatch(llm, sequences=2) as batch:
        before = batch.score(PROMPTS, COMPLETIONS)
        batch.swap(huge)
        assert all(np.isnan(row).all() for each in batch.score(PROMPTS, COMPLETIONS) for row in each)
        ((tokens, logprobs),) = batch.likeliest(PROMPTS[:1], COMPLETIONS[:1], 4)[0]
        assert tokens.shape == logprobs.shape == (2, 4)
        assert np.isnan(logprobs).all()
        assert all(each.exploded for each in batch.generate(PROMPTS, max_tokens=3))
        batch.swap(None)
        for one, other in zip(before, batch.score(PROMPTS, COMPLETIONS), strict=True):
            assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_what_cannot_be_scored(llm: TinyLoraOnnx) -> None:
    with OnnxBatch(llm) as batch:
        with pytest.raises(VectorError, match="4 prompts need as many lists of completions, not 3"):
            batch.score(PROMPTS, COMPLETIONS[:3])
        with pytest.raises(VectorError, match="a completion of prompt 0 is empty"):
            batch.score(PROMPTS[:1], [[[]]])
        with pytest.raises(VectorError, match="as many rows of other tokens"):
            batch.score(PROMPTS[:1], [[[65, 66]]], among=[[np.zeros((1, 2), np.int32)]])
        with pytest.raises(TinyLoraError, match="the prompt has no tokens"):
            batch.score([[]], [[[65]]])
        with pytest.raises(TinyLoraError, match="the context has 64"):
            batch.likeliest([[65] * 64], [[[65]]], 3)
