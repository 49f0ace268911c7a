"""What llama.cpp computes with explicit projections, against torch with the vector in the weights."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import models
import numpy as np
import pytest
import smollm2
import support

from tinylora_edge import Basis, MicroVector, load_basis

FULL_PRECISION = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
AGREEMENT = 1e-3  # of the largest change that the vector makes
NORM = 0.3
FORMS = ("dense", "tiled")


@pytest.fixture(scope="module")
def prompt(smollm2_gguf: Path) -> list[int]:
    return smollm2.tokenize(smollm2_gguf, smollm2.PROMPTS[:1])[0]


@pytest.fixture(scope="module")
def learned(f32_gguf: Path, f32_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """The real model as F32 with 13 values: bundles of each form, and their bases."""
    root = tmp_path_factory.mktemp("learned")
    plain = load_basis(f32_bundles["tiled"] / "basis.gguf")
    forms = support.learned_forms(plain, scale=0.7)
    return {
        form: (support.bundle_with(basis, f32_bundles["tiled"] / "base.gguf", root / form), basis)
        for form, basis in forms.items()
    }


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_the_merged_weights(load, smollm2_gguf, learned, prompt, form):
    folder, basis = learned[form]
    model = smollm2.in_torch(smollm2_gguf)
    base = models.torch_logits(model, prompt)
    vector = MicroVector.random(basis, NORM, seed=1)
    with models.merged(model, basis, vector) as personal:
        expected = models.torch_logits(personal, prompt)
    change = np.abs(expected - base).max()
    assert change > 1
    llm = load(folder, vector.to_bytes(basis), **FULL_PRECISION)
    assert np.abs(models.llama_logits(llm, prompt) - expected).max() <= AGREEMENT * change
    llm.clear()
    assert np.abs(models.llama_logits(llm, prompt) - base).max() <= AGREEMENT
    llm.close()


def test_the_basis_of_a_model_has_its_names_and_prior(load, learned):
    folder, basis = learned["tiled"]
    llm = load(folder)
    loaded: Basis = llm.basis
    np.testing.assert_array_equal(loaded.prior_covariance, basis.prior_covariance)
    llm.close()
