"""What the runtime computes with a vector, against torch with the vector merged into the weights."""

from __future__ import annotations

import llama_cpp
import models
import pytest
import smollm2
import support

FULL_PRECISION = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
NORM = 3.0  # of R
AGREEMENT = 1e-3  # of the largest change that the vector makes; the project promises 1e-2


@pytest.fixture(scope="module")
def prompts(smollm2_gguf):
    return smollm2.tokenize(smollm2_gguf, smollm2.PROMPTS)


@pytest.fixture(scope="module")
def base_in_torch(smollm2_gguf, prompts):
    return in_torch(smollm2.in_torch(smollm2_gguf), prompts)


def in_torch(model, prompts):
    return [models.torch_logits(model, tokens) for tokens in prompts]


def in_llama(llm, prompts):
    return [models.llama_logits(llm, tokens) for tokens in prompts]


def test_f32_base_equals_torch(load, smollm2_gguf, prompts, base_in_torch):
    """Without this the tests below would say little."""
    ours = in_llama(load(smollm2.f32_bundle(smollm2_gguf), **FULL_PRECISION), prompts)
    assert smollm2.worst_difference(ours, base_in_torch) < 1e-3


def test_vectors_of_every_size_equal_merged_weights(load, smollm2_gguf, prompts, base_in_torch):
    """Logits, and token by token torch's first choice after each prefix that the runtime generated."""
    llm = load(smollm2.f32_bundle(smollm2_gguf), **FULL_PRECISION)
    plain = models.llama_greedy(llm, prompts[0], 20)
    for basis in support.each_size(llm.bases):
        vector = support.of_norm(basis, NORM)
        llm.swap(vector)
        ours, generated = in_llama(llm, prompts), models.llama_greedy(llm, prompts[0], 20)
        with models.merged(smollm2.in_torch(smollm2_gguf), basis, vector) as model:
            expected = in_torch(model, prompts)
            logits = models.torch_logits(model, prompts[0] + generated)
        change = smollm2.worst_difference(expected, base_in_torch)
        assert change > 1  # the vector moves the model far more than rounding does
        share = smollm2.worst_difference(ours, expected) / change
        assert share <= AGREEMENT
        assert generated != plain
        assert logits[len(prompts[0]) - 1 : -1].argmax(axis=1).tolist() == generated
