"""Exchanging the vector of an ONNX model: exact, all or nothing, never mixed."""

from __future__ import annotations

from pathlib import Path

import onnx_bundles
import pytest

from tinylora_edge import MicroVector, load_bundle, runtime
from tinylora_edge.runtime import TinyLoraOnnx
from tinylora_edge.runtime.batch import Batch

PROMPT = [72, 101, 108, 108, 111, 32, 119]
COUNT = 8


@pytest.fixture(params=["default", "required"])
def bundle(request: pytest.FixtureRequest) -> Path:
    return onnx_bundles.tiny(request.param)


@pytest.fixture
def llm(bundle: Path) -> TinyLoraOnnx:
    return runtime.load(bundle, engine="onnx", n_ctx=128, n_threads=1)


@pytest.fixture
def vectors(bundle: Path) -> list[MicroVector]:
    return onnx_bundles.vectors(bundle, 3)


def expected(bundle: Path, vector: MicroVector | None, prompt: list[int] = PROMPT) -> list[int]:
    return onnx_bundles.greedy(bundle, prompt, COUNT, vector)


def answer(llm: TinyLoraOnnx, prompt: list[int] = PROMPT) -> list[int]:
    return list(llm.generate(prompt, max_tokens=COUNT))


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(257)] if 257 in tokens else tokens


def test_any_sequence_of_exchanges_equals_a_fresh_model(llm, bundle, vectors):
    a, b, c = vectors
    for vector in (None, a, b, a, None, c, c, None, b):
        if vector is None:
            llm.clear()
        else:
            assert llm.swap(vector) == vector
        assert llm.vector == vector
        assert answer(llm) == until_end(expected(bundle, vector))


def test_the_beginning_of_a_prompt_is_used_again_with_the_same_vector_alone(llm, bundle, vectors):
    engine = llm._loop.engine
    longer = [*PROMPT * 10, 120, 121]
    llm.swap(vectors[0])
    for prompt, fresh in ((PROMPT, 7), (PROMPT, 0), (longer, 72), ([*longer, 122], 9), ([65, 66], 2)):
        before = engine.evaluated
        found = answer(llm, prompt)
        assert found == until_end(expected(bundle, vectors[0], prompt))
        assert engine.evaluated - before <= fresh + COUNT - 1
    llm.swap(vectors[1])
    before = engine.evaluated
    assert answer(llm, [65, 66, 67]) == until_end(expected(bundle, vectors[1], [65, 66, 67]))
    assert engine.evaluated - before >= 3, "keys of the old vector were used"


def test_rows_of_a_tall_graph_have_R_of_any_shape() -> None:
    bundle = onnx_bundles.tiny(outputs=24)
    bases = load_bundle(bundle).bases
    of = [bases.basis(numbers=5), *(bases.basis(rank=rank) for rank in (8, (24, 8), (24, 1), (3, 5)))]
    vectors = [None, *(MicroVector.random(basis, 2.0, seed=basis.size) for basis in of)]
    with (
        runtime.load(bundle, engine="onnx", n_ctx=64, n_threads=1) as llm,
        Batch(llm, n_ctx_seq=32, sequences=3, n_threads=1) as batch,
    ):
        rows = batch.generate([PROMPT] * len(vectors), vectors=vectors, max_tokens=COUNT)
        llm.swap(vectors[3])
        assert answer(llm) == until_end(expected(bundle, vectors[3]))
    found = [until_end(row.tokens.tolist()) for row in rows]
    assert found == [until_end(expected(bundle, vector)) for vector in vectors]
    assert len({*map(tuple, found)}) == len(vectors)
