"""Vectors that are too large for the model: an error, no figure, and nothing of them stays for the next."""

from __future__ import annotations

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
