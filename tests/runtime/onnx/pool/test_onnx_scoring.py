"""Scores of answers on the graph of a pool, and clicks that learn from them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest

from tinylora_edge import MicroVector, TinyLoraError, VectorError, runtime
from tinylora_edge.runtime import Pool
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.runtime.feedback.clicks import Clicks
from tinylora_edge.runtime.feedback.given import Given
from tinylora_edge.runtime.onnx.pool.engine import CHUNK

PROMPTS = [b"a", b"one two three", b"x" * (CHUNK + 1), b"y" * (2 * CHUNK + 3)]
ANSWERS = [b"z", b"four five", b"w" * (CHUNK + 2)]


@pytest.fixture(scope="module")
def bundle() -> Path:
    return onnx_bundles.tiny()


@pytest.fixture
def pool(bundle: Path) -> Iterator[Pool]:
    with Pool(bundle, slots=3, n_ctx=450, n_threads=1) as opened:
        yield opened


def vectors(pool: Pool, count: int) -> list[MicroVector]:
    return [MicroVector.random(pool.basis, 1.0, seed=seed) for seed in range(count)]


def test_scores_are_those_of_the_model_that_serves_nobody_else(pool: Pool, bundle: Path) -> None:
    users = [None, *vectors(pool, 2)]
    asked = [(list(p), list(a), v) for p in PROMPTS for a in ANSWERS for v in users]
    scorer, answers = pool.scorer(), [list(a) for a in ANSWERS]
    scored = [scorer.score_under(users, list(p), answers) for p in PROMPTS]  # [prompts][users][answers]
    found = [scored[p][u][a] for p in range(len(PROMPTS)) for a in range(len(ANSWERS)) for u in range(3)]
    with (
        runtime.load(bundle, engine="onnx", n_ctx=450, n_threads=1) as llm,
        Batch(llm, n_ctx_seq=450) as batch,
    ):
        for (prompt, answer, vector), row in zip(asked, found, strict=True):
            batch.swap(vector)
            ((expected,),) = batch.score([prompt], [[answer]])
            np.testing.assert_allclose(row, expected, atol=2e-4)
    assert np.abs(found[3] - found[4]).max() > 1e-2, "the vectors differ"


def test_a_temperature_is_that_of_the_distribution(pool: Pool) -> None:
    """Over all tokens the probabilities are 1, and their logarithms are further apart where it is low."""
    scorer = pool.scorer()
    (rows,) = scorer.score_under([None], [1, 2], [[token] for token in range(260)], temperature=0.5)
    cold = np.concatenate(rows).astype(np.float64)
    (rows,) = scorer.score_under([None], [1, 2], [[token] for token in range(260)])
    warm = np.concatenate(rows).astype(np.float64)
    assert np.exp(cold).sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(cold - cold.max(), 2 * (warm - warm.max()), atol=1e-4)


def test_a_vector_that_is_too_large_spoils_no_later_score(pool: Pool) -> None:
    scorer = pool.scorer()
    huge = MicroVector.random(pool.basis, 1e30)
    (before,), (exploded,), (after,) = scorer.score_under([None, huge, None], [1, 2, 3], [[4, 5]])
    assert np.isnan(exploded).any()
    np.testing.assert_array_equal(after, before)


def test_a_scorer_that_is_closed_or_asked_for_nothing(pool: Pool) -> None:
    scorer = pool.scorer()
    for prompt, answer, temperature in (([], [1], 1.0), ([1], [], 1.0), ([1], [1], 0.0)):
        with pytest.raises(VectorError):
            scorer.score_under([None], prompt, [answer], temperature=temperature)
    scorer.close()
    with pytest.raises(TinyLoraError, match="the scorer is closed"):
        scorer.score_under([None], [1], [[1]])
    other = pool.scorer()
    pool.close()
    with pytest.raises(TinyLoraError, match="the pool is closed"):
        other.score_under([None], [1], [[1]])
    with pytest.raises(TinyLoraError, match="the pool is closed"):
        pool.scorer()


def test_a_click_makes_its_answer_likelier_beside_answers_that_go_on(pool: Pool, tmp_path: Path) -> None:
    """A like moves the vector up the answer's own score, a dislike down, and nobody else's bits change."""
    clicks, scorer = Clicks(pool.basis, pool.scorer()), pool.scorer()
    prompt, answer = tuple(PROMPTS[1]), tuple(b"four five")
    given = Given(prompt, answer, None)
    options: Any = {"max_tokens": 60, "temperature": 0, "logprobs": 0}

    async def beside() -> tuple[list[float], dict[int, MicroVector]]:
        going = asyncio.create_task(pool.complete("somebody else", user="other", **options))
        moved = {}
        for reward in (1, -1):
            moved[reward] = await asyncio.to_thread(clicks.tell, tmp_path / f"{reward}.state", given, reward)
        return [token.logprob for token in (await going).tokens], moved

    alone = [token.logprob for token in asyncio.run(pool.complete("somebody else", **options)).tokens]
    bits, moved = asyncio.run(beside())
    assert bits == alone
    scored = scorer.score_under([moved[1], None, moved[-1]], prompt, [answer])
    liked, base, disliked = (row.sum(dtype=np.float64) for (row,) in scored)
    assert liked > base > disliked
