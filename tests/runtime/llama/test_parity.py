"""What the runtime computes with a vector, against torch with the vector merged into the weights."""

from __future__ import annotations

import llama_cpp
import models
import numpy as np
import pytest
import smollm2
import support

from tinylora_edge import MicroVector, load_bundle

FULL_PRECISION = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
NORM = 0.3
AGREEMENT = 1e-3  # of the largest change that the vector makes; the project promises 1e-2


@pytest.fixture(scope="module")
def prompts(smollm2_gguf):
    return smollm2.tokenize(smollm2_gguf, smollm2.PROMPTS)


@pytest.fixture(scope="module")
def base_in_torch(smollm2_gguf, prompts):
    model = smollm2.in_torch(smollm2_gguf)
    return [models.torch_logits(model, tokens) for tokens in prompts]


def in_torch(gguf, basis, vector, prompts):
    with models.merged(smollm2.in_torch(gguf), basis, vector) as model:
        return [models.torch_logits(model, tokens) for tokens in prompts]


def in_llama(llm, prompts):
    return [models.llama_logits(llm, tokens) for tokens in prompts]


def test_f32_base_equals_torch(load, f32_bundles, prompts, base_in_torch):
    """Without this the tests below would say little."""
    ours = in_llama(load(f32_bundles["tiled"], **FULL_PRECISION), prompts)
    assert smollm2.worst_difference(ours, base_in_torch) < 1e-3


@pytest.mark.parametrize("projection", ["random", "learned"])
def test_vector_equals_merged_weights(
    projection, load, smollm2_gguf, f32_bundles, prompts, base_in_torch, record_property, tmp_path
):
    folder = f32_bundles["tiled"]
    if projection == "learned":
        basis = support.learned_forms(load_bundle(folder / "basis.gguf"), scale=0.7)["tiled"]
        folder = support.bundle_with(basis, folder / "base.gguf", tmp_path / "learned")
    llm = load(folder, **FULL_PRECISION)
    vector = MicroVector.random(llm.bases.basis(numbers=13), NORM, seed=1)
    expected = in_torch(smollm2_gguf, llm.bases.basis(numbers=13), vector, prompts)
    change = smollm2.worst_difference(expected, base_in_torch)
    assert change > 1  # the vector moves the model far more than rounding does
    llm.swap(vector)
    share = smollm2.worst_difference(in_llama(llm, prompts), expected) / change
    report(record_property, f"{projection}: {share:.2g} of the largest change ({change:.3g})")
    assert share <= AGREEMENT


def test_greedy_tokens_equal_merged_weights(kind, load, smollm2_gguf, f32_bundles, prompts):
    """Token by token: torch's first choice after each prefix that the runtime generated."""
    llm = load(f32_bundles[kind], **FULL_PRECISION)
    vector = MicroVector.random(llm.bases.basis(numbers=13), NORM, seed=2)
    plain = models.llama_greedy(llm, prompts[0], 20)
    llm.swap(vector)
    generated = models.llama_greedy(llm, prompts[0], 20)
    assert generated != plain
    with models.merged(smollm2.in_torch(smollm2_gguf), llm.bases.basis(numbers=13), vector) as model:
        logits = models.torch_logits(model, prompts[0] + generated)
    assert logits[len(prompts[0]) - 1 : -1].argmax(axis=1).tolist() == generated


def test_on_a_quantized_base_the_error_is_the_noise_of_its_activations(
    load, smollm2_gguf, smollm2_bundle, prompts, record_property
):
    llm = load(smollm2_bundle)
    error, noise = [], []
    for seed in (11, 12):
        vector = MicroVector.random(llm.bases.basis(numbers=13), NORM, seed=seed)
        exact = in_torch(smollm2_gguf, llm.bases.basis(numbers=13), vector, prompts)
        llm.swap(vector)
        ours = in_llama(llm, prompts)
        error += [smollm2.kl_divergence(p, q) for p, q in zip(ours, exact, strict=True)]
        for factor in (1 + 1e-6, 1 - 1e-6):
            llm.swap(MicroVector(vector.values * np.float32(factor)))
            near = in_llama(llm, prompts)
            noise += [smollm2.kl_divergence(p, q) for p, q in zip(ours, near, strict=True)]
    report(record_property, f"KL(ours || exact) {np.mean(error):.2g}, noise floor {np.mean(noise):.2g}")
    assert np.mean(noise) > 0
    assert np.mean(error) <= 3 * np.mean(noise)


def report(record_property, text):
    record_property("measured", text)
    print(text)
