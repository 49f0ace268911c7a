"""`add_base`: another deployed form of the same model is listed, and nothing else is."""

from __future__ import annotations

import shutil

import models
import numpy as np
import pytest
import smollm2
import support

from tinylora_edge import BaseMismatchError, MicroVector, load_basis, load_bundle, save_basis
from tinylora_edge.exporters import ExportSettings, add_base, export_gguf


@pytest.fixture
def bundle(llama_gguf, tmp_path):
    return export_gguf(llama_gguf, tmp_path / "bundle", settings=ExportSettings(groups=5)).output


def beside(bundle, base, directory):
    """The base with the bundle's basis beside it, as `runtime.load` finds both."""
    directory.mkdir()
    target = directory / "model.gguf"
    shutil.copy(base, target)
    shutil.copy(bundle / "basis.gguf", directory / "model.basis.gguf")
    return target


@pytest.mark.parametrize(
    ("name", "ftype", "farthest", "alike"),
    # Q8_0 depends on how kernels round activations: .98 with AVX, .978 with AMX
    [("Q8_0", smollm2.MOSTLY_Q8_0, 0.01, 0.97), ("Q4_K_M", smollm2.MOSTLY_Q4_K_M, 0.1, 0.9)],
)
def test_other_forms_of_the_real_model(
    f32_gguf, tmp_path, load, name, ftype, farthest, alike, record_property
):
    other = smollm2.requantized(f32_gguf, ftype)
    bundle = export_gguf(f32_gguf, tmp_path / "bundle").output
    before = load_basis(bundle / "basis.gguf")
    data = MicroVector.random(before, 0.3).to_bytes(before)
    with pytest.raises(BaseMismatchError, match="add_base"):
        load(beside(bundle, other, tmp_path / "before"), data)

    basis, distance = add_base(bundle, other)
    record_property("distance", distance)
    print(f"{name}: {distance:.3g} from the factors of the F32 file")
    assert 0 < distance < farthest
    assert basis.digest == before.digest
    stored = load_basis(bundle / "basis.gguf")
    assert stored.digest == before.digest
    assert stored.base_fingerprints == basis.base_fingerprints
    assert stored.base_fingerprints[:1] == before.base_fingerprints
    assert len(stored.base_fingerprints) == 2

    prompt = smollm2.tokenize(other, [smollm2.PROMPTS[0]])[0]
    logits = {}
    for form, base in (("F32", bundle), (name, beside(bundle, other, tmp_path / "after"))):
        llm = load(base)
        plain = models.llama_logits(llm, prompt)
        llm.swap(data)
        logits[form] = plain, models.llama_logits(llm, prompt)
    # The vector does to the one what it does to the other, up to what quantization did to both.
    left, right = (after - before for before, after in logits.values())
    correlation = np.corrcoef(left.ravel(), right.ravel())[0, 1]
    record_property("correlation", correlation)
    print(f"{name}: what the vector does to its logits correlates {correlation:.4f} with F32's")
    assert correlation > alike


def test_adding_twice_lists_once(bundle, llama_gguf, tmp_path):
    small = models.quantize_file(llama_gguf, tmp_path / "q8.gguf", 7)
    for _ in range(2):
        basis, _ = add_base(bundle, small)
        assert len(basis.base_fingerprints) == 2
    basis, distance = add_base(bundle, llama_gguf)
    assert len(basis.base_fingerprints) == 2
    assert distance < 1e-3
    assert load_bundle(bundle).check_base() == basis.base_fingerprints[0]


@pytest.mark.parametrize("form", ["dense", "tiled"])
def test_a_learned_basis_keeps_its_projections_names_and_prior(bundle, llama_gguf, tmp_path, form):
    before = support.learned_forms(load_basis(bundle / "basis.gguf"), 5)[form]
    save_basis(before, bundle / "basis.gguf")
    small = models.quantize_file(llama_gguf, tmp_path / "q8.gguf", 7)
    add_base(bundle, small)
    after = load_basis(bundle / "basis.gguf")
    assert len(after.base_fingerprints) == len(before.base_fingerprints) + 1
    assert after.digest == before.digest
    np.testing.assert_array_equal(after.prior_mean, before.prior_mean)
    np.testing.assert_array_equal(after.prior_covariance, before.prior_covariance)
    np.testing.assert_array_equal(after.projections, before.projections)


def refused(bundle, base, error, match):
    before = (bundle / "basis.gguf").read_bytes()
    with pytest.raises(error, match=match):
        add_base(bundle, base)
    assert (bundle / "basis.gguf").read_bytes() == before
    assert sorted(path.name for path in bundle.iterdir()) == ["base.gguf", "basis.gguf", "manifest.json"]


def without(name):
    return lambda tensor: None if tensor == name else tensor


def test_a_missing_module(bundle, tiny_models, tmp_path):
    name = "blk.1.ffn_up.weight"
    other = models.write_gguf(tiny_models["llama"], tmp_path / "other.gguf", rename=without(name))
    refused(bundle, other, BaseMismatchError, r"blk\.1\.ffn_up\.weight.*no such tensor")


def altered(name, change):
    return lambda tensor, array: change(array.copy()) if tensor == name else array


@pytest.mark.parametrize(
    "change",
    [
        lambda w: np.where(np.arange(w.size).reshape(w.shape) == 77, np.float32(np.nan), w),
        lambda w: np.where(np.arange(w.size).reshape(w.shape) == 77, np.float32(np.inf), w),
        np.zeros_like,
        lambda w: w[::-1],
        lambda w: w * np.float32(2),
        lambda w: -w,
    ],
    ids=["NaN", "infinity", "zeros", "rows in another order", "scaled", "negated"],
)
def test_one_weight_that_is_another(bundle, tiny_models, tmp_path, change):
    name = "blk.1.ffn_up.weight"
    other = models.write_gguf(tiny_models["llama"], tmp_path / "other.gguf", change=altered(name, change))
    refused(bundle, other, BaseMismatchError, r"blk\.1\.ffn_up\.weight")
