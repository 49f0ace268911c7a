"""Vectors that are too large for the model: said, never a figure, and nothing of them stays for the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest

from tinylora_edge import MicroVector, runtime
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.runtime.model import PersonalizedModel
from tinylora_edge.tasks import Sample

TOKENS = [list(text.encode()) for text in ("one two three", "one two four", "one", "quite another text")]
SAMPLES = [Sample(text, raw=True) for text in ("one two three", "quite another text")]


@pytest.fixture
def llama(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> Iterator[TinyLoraLlama]:
    with load(tiny_bundle, chat_format="chatml", flash_attn=False) as opened:
        yield opened


@pytest.fixture
def onnx() -> Iterator[PersonalizedModel]:
    with runtime.load(onnx_bundles.without_template(), engine="onnx", n_ctx=96, n_threads=1) as opened:
        yield opened


def huge(llama: PersonalizedModel) -> MicroVector:
    return MicroVector(np.full(llama.bases.basis(rank=8).size, 1e30, np.float32))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_says_what_explodes_and_forgets_it(llama: TinyLoraLlama, temperature: float) -> None:
    options: dict[str, Any] = {"samples": 3, "max_tokens": 7, "temperature": temperature, "seed": 4}
    with Batch(llama, n_ctx_seq=40, sequences=16, n_threads=2) as batch:

        def answers() -> list[list[Any]]:
            return [[g.tokens.tolist(), g.logprobs.tolist()] for g in batch.generate(TOKENS, **options)]

        def scores(vector: MicroVector | None = None) -> list[Any]:
            return [row.tolist() for (row,) in batch.score(TOKENS, [[[65, 66]]] * 4, vector=vector)]

        before = answers(), scores()
        for generation in batch.generate(TOKENS, vectors=huge(llama), **options):
            assert generation.exploded
            assert not generation.ended
            assert np.isfinite(generation.logprobs).all()
            assert len(generation.tokens) == len(generation.logprobs) < 7
        assert np.isnan(scores(huge(llama))).all()
        assert (answers(), scores()) == before
        scores(huge(llama))
        assert scores() == before[1]
        assert not any(g.exploded for g in batch.generate(TOKENS, **options))


def test_of_many_vectors_only_those_explode_that_do(either: PersonalizedModel) -> None:
    vectors = [MicroVector.random(either.bases.basis(numbers=13), 0.3, seed=1), huge(either), None]
    with either.batch(SAMPLES, 4, sequences=8, n_threads=1) as population:
        options: dict[str, Any] = {"max_tokens": 4, "temperature": 1.0, "seed": 3}
        alone = [population.answer_each([v], SAMPLES, **options)[0] for v in (vectors[0], None)]
        first, exploded, base = population.answer_each(vectors, SAMPLES, **options)
        assert [first, base] == alone
        assert all(answer.exploded for answer in exploded)
        assert not any(answer.exploded for answer in (*first, *base))
        prompts = population.encode(SAMPLES)
        drawn = population.generate(prompts, max_tokens=4, temperature=1.0, seed=1)
        found = population.score_each(vectors, prompts, [[each.tokens.tolist()] for each in drawn])
        ok, bad, again = (np.concatenate([row for (row,) in each]) for each in found)
        assert np.isnan(bad).all()
        assert np.isfinite(ok).all()
        assert np.isfinite(again).all()
