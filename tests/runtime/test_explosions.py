"""Vectors that are too large for the model: an error, no figure, and nothing of them stays for the next."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest

from tinylora_edge import MicroVector, Policy, VectorError, runtime
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.runtime.model import PersonalizedModel

TOKENS = [list(text.encode()) for text in ("one two three", "one two four", "one", "quite another text")]
ANY = Policy(max_norm=math.inf)


@pytest.fixture
def llama(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> Iterator[TinyLoraLlama]:
    with load(tiny_bundle, chat_format="chatml", flash_attn=False, policy=ANY) as opened:
        yield opened


@pytest.fixture
def onnx() -> Iterator[PersonalizedModel]:
    bundle = onnx_bundles.without_template()
    with runtime.load(bundle, engine="onnx", n_ctx=96, n_threads=1, policy=ANY) as opened:
        yield opened


def test_a_batch_says_what_is_too_large_and_forgets_it(llm: PersonalizedModel) -> None:
    """Beyond what a policy accepts by default: R of a norm at which both models have no logits."""
    basis = llm.bases.basis(rank=8)
    huge = MicroVector(np.full(basis.size, 1e30, np.float32))
    small = MicroVector.random(basis, 0.3, seed=1)
    options: dict[str, Any] = {"samples": 3, "max_tokens": 7, "temperature": 1.0, "seed": 4}
    with Batch(llm, n_ctx_seq=40, sequences=16, n_threads=2) as batch:

        def found() -> list[Any]:
            drawn = batch.generate(TOKENS, vectors=small, **options)
            (scores,) = batch.score_each([None], TOKENS, [[[65, 66]]] * 4)
            return [[g.tokens.tolist() for g in drawn], [row.tolist() for (row,) in scores]]

        before = found()
        for call in (
            lambda: batch.generate(TOKENS, vectors=huge, **options),
            lambda: batch.generate(TOKENS, vectors=[small, huge, None, None], **options),
            lambda: batch.score_each([huge], TOKENS, [[[65, 66]]] * 4),
        ):
            with pytest.raises(VectorError, match="too large for the model"):
                call()
            assert found() == before


def test_the_policy_of_a_model_is_that_of_a_batch(tiny_bundle: Path) -> None:
    """Of what an app made itself; of bytes: bad_vectors."""
    with runtime.load(tiny_bundle, n_ctx=64) as llm, Batch(llm, n_ctx_seq=40, n_threads=1) as batch:
        vector = MicroVector.random(llm.bases.basis(rank=8), 257.0)
        with pytest.raises(VectorError, match="norm 257, but the policy accepts at most 256"):
            batch.generate(TOKENS, vectors=vector, max_tokens=2)


def test_what_was_left_in_its_prompt_is_forgotten_too(
    llm: PersonalizedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has seen that its logits are not finite; where they are, a token says so, and no prompt."""
    basis = llm.bases.basis(rank=8)
    huge, small = MicroVector(np.full(basis.size, 1e30, np.float32)), MicroVector.random(basis, 0.3, seed=1)
    with runtime.Pool(llm, n_ctx=96, slots=2, n_threads=1) as pool:
        engine, real, seen = pool._loop.engine, pool._loop.engine.evaluate, list[list[int]]()

        async def answers() -> list[str]:
            asked = [pool.complete("one " * 18, user=user, temperature=0.0, max_tokens=5) for user in "abcd"]
            return [answer.text for answer in await asyncio.gather(*asked)]

        async def leave(vector: MicroVector) -> int:
            stream = pool.stream("one " * 20, raw=True, user="m", vector=vector)

            def evaluate(parts: Any) -> Any:
                seen.append([len(part.tokens) for part in parts])
                if len(seen) == 1:
                    stream.close()
                return real(parts)

            seen.clear()
            before = engine.evaluated
            with monkeypatch.context() as patched:
                patched.setattr(engine, "evaluate", evaluate)
                await stream.start()
                while pool.busy().running or pool.busy().waiting or not seen:
                    await asyncio.sleep(0.001)
            return engine.evaluated - before

        before = asyncio.run(answers())
        assert asyncio.run(leave(small)) == 64 + 1
        assert seen == [[64], [1]]
        for _ in range(2):
            asyncio.run(leave(huge))
            assert asyncio.run(answers()) == before
