"""The same bits, cold, warm and beside vectors that explode, where engines round."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
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
    usual: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "policy": Policy(max_norm=math.inf)}
    if request.param == "llama":
        with Pool(request.getfixturevalue("smollm2_bundle"), slots=3, **usual) as made:
            yield made
    else:
        with Pool(onnx_bundles.tiny(architecture="qwen2", precision="int4"), slots=3, **usual) as made:
            yield made


def test_a_prompt_that_comes_again_and_a_chat_that_goes_on(pool: Pool) -> None:
    vector = MicroVector.random(pool.bases.basis(rank=2), 1.0, seed=1)

    def ask(prompt: str, user: str) -> Answer:
        return asyncio.run(pool.complete(prompt, user=user, vector=vector, max_tokens=8, **GREEDY))

    for number, prompt in enumerate((TEXT * 5, TEXT * 4 + "who", TEXT[:30] * 12)):
        cold = ask(prompt, "me")
        assert bits(ask(prompt, "me")) == bits(cold)
        longer = f"{prompt}{cold.text} And"
        warm = ask(longer, "me")
        assert warm.finish.cached_tokens > 0
        assert bits(warm) == bits(ask(longer, f"stranger {number}"))


@pytest.mark.parametrize("slots", [1, 3])
def test_an_answer_beside_vectors_that_explode_at_every_token(tiny_bundle: Path, slots: int) -> None:
    usual = dict.fromkeys(("type_k", "type_v"), llama_cpp.GGML_TYPE_F32)
    how: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "policy": Policy(max_norm=math.inf), "slots": slots}
    with Pool(tiny_bundle, **usual, **how) as pool:
        explode(pool)


def test_an_answer_of_onnx_runtime_beside_vectors_that_explode() -> None:
    how: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "policy": Policy(max_norm=math.inf), "slots": 3}
    with Pool(onnx_bundles.tiny(architecture="qwen2", precision="int4"), **how) as pool:
        explode(pool)


def explode(pool: Pool) -> None:
    basis = pool.bases.basis(rank=2)
    vector = MicroVector.random(basis, 1.0, seed=2)

    async def good(user: str = "good") -> list[float]:
        return bits(await pool.complete(TEXT, user=user, vector=vector, max_tokens=96, **GREEDY))

    async def bad(number: int) -> None:
        source = MicroVector.random(basis, 1e30 * (1 - number / 1000), seed=1)
        with pytest.raises(VectorError, match="too large for the model"):
            await pool.complete(TEXT[:20], user="bad", vector=source, max_tokens=2, **GREEDY)

    async def beside() -> list[float]:
        answering, count = asyncio.create_task(good()), 0
        while not answering.done() or count < 3:
            await bad(count := count + 1)
        return await answering

    expected = asyncio.run(good())
    found = [asyncio.run(beside()), *(asyncio.run(good(user)) for user in "abc")]  # in the rows afterwards
    assert found == [expected] * 4
