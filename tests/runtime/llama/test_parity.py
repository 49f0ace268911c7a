"""What the runtime computes with a vector, against torch with the vector merged into the weights."""

from __future__ import annotations

import llama_cpp
import models
import noise
import numpy as np
import smollm2
import support

FULL_PRECISION = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}


def test_vectors_of_every_size_equal_merged_weights(load, smollm2_gguf):
    """Logits, and token by token torch's first choice after each prefix that the runtime generated."""
    llm = load(smollm2.f32_bundle(smollm2_gguf), **FULL_PRECISION)
    prompts = [llm.tokenize(prompt.encode(), special=True) for prompt in smollm2.PROMPTS]

    def every(logits, model):
        return np.concatenate([logits(model, tokens) for tokens in prompts])

    plain = models.llama_greedy(llm, prompts[0], 20)
    base = every(models.torch_logits, smollm2.in_torch(smollm2_gguf))
    bound = max(noise.of(llm, tokens) for tokens in prompts)
    assert np.abs(every(models.llama_logits, llm) - base).max() < bound, "else the rest would say little"
    for basis in support.each_size(llm.bases):
        vector = support.of_norm(basis, 3.0)
        llm.swap(vector)
        ours, generated = every(models.llama_logits, llm), models.llama_greedy(llm, prompts[0], 20)
        with models.merged(smollm2.in_torch(smollm2_gguf), basis, vector) as model:
            expected = every(models.torch_logits, model)
            logits = models.torch_logits(model, prompts[0] + generated)
        assert np.abs(expected - base).max() > 1  # the vector moves the model far more than rounding does
        assert np.abs(ours - expected).max() < bound
        assert generated != plain
        assert logits[len(prompts[0]) - 1 : -1].argmax(axis=1).tolist() == generated
