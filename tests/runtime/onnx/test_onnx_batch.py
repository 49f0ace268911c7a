"""Many users at once: each row of a batch with its own vector equals its single run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest

from tinylora_edge import ChecksumError, RollbackError, TinyLoraError, VectorError, runtime
from tinylora_edge.runtime import TinyLoraOnnx
from tinylora_edge.vector import MicroVector

PROMPTS = ["Hello", "a much longer prompt, of another user", "x", "Hello"]
PAD = 258


@pytest.fixture(params=["default", "required"])
def flavour(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["tiled", "dense"])
def bundle(request: pytest.FixtureRequest, flavour: str) -> Path:
    return onnx_bundles.tiny(flavour, request.param)


@pytest.fixture
def llm(bundle: Path) -> TinyLoraOnnx:
    return runtime.load(bundle, engine="onnx", n_ctx=96, n_threads=1)


@pytest.fixture
def vectors(bundle: Path) -> list[MicroVector | None]:
    return [*onnx_bundles.vectors(bundle, 3), None]


def alone(llm: TinyLoraOnnx, prompt: Any, vector: MicroVector | None, **options: Any) -> list[int]:
    if vector is None:
        llm.clear()
    else:
        llm.swap(vector)
    return list(llm.generate(prompt, **options))


def test_each_row_equals_its_single_run(llm: TinyLoraOnnx, vectors: list[MicroVector | None]) -> None:
    rows = llm.generate_batch(PROMPTS, vectors, max_tokens=20)
    for row, prompt, vector in zip(rows, PROMPTS, vectors, strict=True):
        assert row.tokens.tolist() == alone(llm, llm.tokenize(prompt), vector, max_tokens=20)
        assert row.text == llm.detokenize(row.tokens.tolist())
        assert row.vector == vector
        assert row.finish_reason == ("length" if len(row.tokens) == 20 else "stop")
    assert rows[0].tokens.tolist() != rows[3].tokens.tolist(), "the same prompt, another user"


def test_rows_that_are_drawn(llm: TinyLoraOnnx, vectors: list[MicroVector | None]) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.5, "min_p": 0.0}
    rows = llm.generate_batch(["Hello"] * 4, vectors[0], seed=7, **options)
    assert len({tuple(row.tokens) for row in rows}) == 4, "every row draws by itself"
    again = llm.generate_batch(["Hello"] * 4, vectors[0], seed=7, **options)
    for one, other in zip(rows, again, strict=True):
        assert np.array_equal(one.tokens, other.tokens)
    fewer = llm.generate_batch(["Hello"] * 2, vectors[0], seed=7, **options)
    assert [row.text for row in fewer] == [row.text for row in rows[:2]]


def test_one_vector_for_all(llm: TinyLoraOnnx, vectors: list[MicroVector | None]) -> None:
    for vector in (vectors[0], None):
        for row, prompt in zip(llm.generate_batch(PROMPTS, vector, max_tokens=8), PROMPTS, strict=True):
            assert row.tokens.tolist() == alone(llm, llm.tokenize(prompt), vector, max_tokens=8)


def test_the_active_vector_neither_counts_nor_changes(
    llm: TinyLoraOnnx, vectors: list[MicroVector | None]
) -> None:
    assert vectors[0] is not None
    before = [row.text for row in llm.generate_batch(PROMPTS, vectors, max_tokens=6)]
    llm.swap(vectors[0])
    answer = llm("Hello", max_tokens=6, temperature=0)["choices"]
    assert [row.text for row in llm.generate_batch(PROMPTS, vectors, max_tokens=6)] == before
    assert llm.vector == vectors[0]
    assert llm("Hello", max_tokens=6, temperature=0)["choices"] == answer


def test_a_prompt_that_ends_with_the_padding_token(
    llm: TinyLoraOnnx, vectors: list[MicroVector | None]
) -> None:
    prompts = [[72, 101, PAD], [72, PAD, 101], [72, 101, 108, 108, 111], [PAD]]
    rows = llm.generate_batch(prompts, vectors, max_tokens=8)
    for row, prompt, vector in zip(rows, prompts, vectors, strict=True):
        assert row.tokens.tolist() == alone(llm, prompt, vector, max_tokens=8)


def test_rows_that_end_early(llm: TinyLoraOnnx, vectors: list[MicroVector | None]) -> None:
    options: dict[str, Any] = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 60}
    ended = []
    for seed in range(8):
        for row in llm.generate_batch(["x"] * 4, vectors, seed=seed, **options):
            assert 257 not in row.tokens
            assert (row.finish_reason == "length") == (len(row.tokens) == 60)
            ended.append(row.finish_reason)
    assert set(ended) == {"stop", "length"}


def test_chat_messages_and_token_ids(llm: TinyLoraOnnx, vectors: list[MicroVector | None]) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    text = llm.apply_chat_template(messages)
    forms = [messages, text, llm.tokenize(text)]
    rows = llm.generate_batch(forms, vectors[0], max_tokens=8)
    assert len({row.text for row in rows}) == 1


def test_refusals_generate_and_record_nothing(llm: TinyLoraOnnx, vectors: list[MicroVector | None]) -> None:
    assert vectors[0] is not None
    basis = llm.basis
    new = MicroVector(vectors[0].values, sequence=9).to_bytes(basis, version=1)  # of any stream
    old = MicroVector(vectors[0].values, sequence=3).to_bytes(basis, version=1)
    with pytest.raises(VectorError, match=r"3 rows.*2 sequences"):
        llm.generate_batch(["a", "b"], [new, old, None])
    with pytest.raises(ChecksumError, match="row 1"):
        llm.generate_batch(["a", "b"], [new, old[:-1] + bytes([old[-1] ^ 1])])
    with pytest.raises(TinyLoraError, match="prompt 1 has no tokens"):
        llm.generate_batch(["a", ""], [new, old])
    with pytest.raises(TinyLoraError, match="prompt 0 has 96 tokens"):
        llm.generate_batch([[65] * 96, "b"], [new, old])
    llm.generate_batch(["a"], old, max_tokens=1)  # 9 was never recorded
    llm.generate_batch(["a", "b"], [new, old], streams=["alice", "bob"], max_tokens=1)
    with pytest.raises(RollbackError, match="row 0"):
        llm.generate_batch(["a"], [old], streams=["alice"], max_tokens=1)


@pytest.mark.parametrize("most", [20, 0])
def test_a_long_prompt_cuts_no_neighbour_short(
    llm: TinyLoraOnnx, vectors: list[MicroVector | None], most: int
) -> None:
    """The context has 96 tokens: 6 after the longest prompt, all that were asked for after a short one."""
    prompts = [[65] * 90, [66] * 3, [67] * 90, [68] * 40, [69] * 85]
    asked = [*vectors, vectors[0]]
    found = llm.generate_batch(prompts, asked, max_tokens=most)
    for row, prompt, vector in zip(found, prompts, asked, strict=True):
        assert row.tokens.tolist() == alone(llm, prompt, vector, max_tokens=most)
    drawn = llm.generate_batch(prompts, asked, max_tokens=20, temperature=1.0, seed=1)
    assert max(len(row.tokens) for row in drawn) > 6
    for row, prompt in zip(drawn, prompts, strict=True):
        assert len(row.tokens) <= min(20, 96 - len(prompt))
        assert (row.finish_reason == "length") == (len(row.tokens) == min(20, 96 - len(prompt)))


def test_a_vector_that_is_too_large_is_named_by_its_row(
    llm: TinyLoraOnnx, vectors: list[MicroVector | None]
) -> None:
    huge = MicroVector(np.full((llm.basis.groups, llm.basis.u), 3e38, np.float32))
    with pytest.raises(TinyLoraError, match="row 1"):
        llm.generate_batch(["a", "b", "c"], [vectors[0], huge, None], max_tokens=2)
    assert len(llm.generate_batch(["a", "b"], [vectors[0], None], max_tokens=2)) == 2
