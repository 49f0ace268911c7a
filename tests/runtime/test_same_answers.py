"""The same bits, cold, warm and beside vectors that explode, where engines round: on quantized weights."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import onnx_bundles
import pytest
from turns import bits

from tinylora_edge import MicroVector, Policy, VectorError
from tinylora_edge.runtime import Pool
from tinylora_edge.runtime.answers import Answer

TEXT = "Once upon a time, in a small village by the sea, there lived an old fisherman. "
GREEDY: dict[str, Any] = {"temperature": 0, "logprobs": 0}


@pytest.fixture(scope="module", params=["llama", "onnx"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    usual: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "policy": Policy(max_norm=math.inf)}
    if request.param == "llama":
        with Pool(request.getfixturevalue("smollm2_bundle"), contexts=1, slots=3, **usual) as made:
            yield made
    else:
        with Pool(onnx_bundles.tiny(architecture="qwen2", precision="int4"), slots=3, **usual) as made:
            yield made


def test_a_prompt_that_comes_again_and_a_chat_that_goes_on(pool: Pool) -> None:
    vector = MicroVector.random(pool.bases.basis(rank=2), 1.0, seed=1)

    def ask(prompt: str, user: str) -> Answer:
        return asyncio.run(pool.complete(prompt, user=user, vector=vector, max_tokens=8, **GREEDY))

    for number, prompt in enumerate((TEXT, TEXT[:70] + "who", TEXT[:30] * 5)):
        cold = ask(prompt, "me")
        assert bits(ask(prompt, "me")) == bits(cold)
        longer = f"{prompt}{cold.text} And"
        warm = ask(longer, "me")
        assert warm.finish.cached_tokens > 0
        assert bits(warm) == bits(ask(longer, f"stranger {number}"))


def test_an_answer_beside_vectors_that_explode_at_every_token(pool: Pool) -> None:
    vector = MicroVector.random(pool.bases.basis(rank=2), 1.0, seed=2)
    norm = 1e30 if pool.model.mixed else 500.0
    basis = pool.bases.basis(rank=2)

    async def good() -> Answer:
        return await pool.complete(TEXT, user="good", vector=vector, max_tokens=96, **GREEDY)

    async def explode(number: int) -> None:
        bad = MicroVector.random(basis, norm * (1 - number / 1000), seed=1)
        source: Any = bad if pool.model.mixed else bad.to_bytes(basis, user="bad")
        with pytest.raises(VectorError, match="too large for the model"):
            await pool.complete(TEXT[:20], user="bad", vector=source, max_tokens=2, **GREEDY)

    async def beside() -> tuple[Answer, int]:
        answering, count = asyncio.create_task(good()), 0
        while not answering.done():
            await explode(count := count + 1)
        return await answering, count

    expected = asyncio.run(good())
    answer, count = asyncio.run(beside())
    assert count > 2
    assert bits(answer) == bits(expected)
    for user in ("a", "b", "c"):  # and whoever gets the rows afterwards
        again = asyncio.run(pool.complete(TEXT, user=user, vector=vector, max_tokens=96, **GREEDY))
        assert bits(again) == bits(expected)
