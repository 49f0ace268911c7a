"""Bundles of small models of two architectures: what they compute, and what is in them."""

from __future__ import annotations

import json

import models
import numpy as np
import pytest

from tinylora_edge import MicroVector, __version__
from tinylora_edge.exporters import ExportSettings, export_gguf

PROMPT = list(b"one two three four")
SETTINGS = {"tiled": ExportSettings(groups=5), "dense": ExportSettings(u=3, groups=2)}


@pytest.fixture(params=models.ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture
def model(architecture, tiny_models):
    return tiny_models[architecture]


@pytest.fixture
def gguf(architecture, tiny_ggufs):
    return tiny_ggufs[architecture]


@pytest.fixture(params=["gguf", "hf", "hf sharded bfloat16"])
def source(request, model, gguf, tmp_path):
    """What is exported: the GGUF, or a Hugging Face directory with the GGUF as base."""
    if request.param == "gguf":
        return {"model": gguf}
    options = {"dtype": "bfloat16", "max_shard_size": "60KB"} if "sharded" in request.param else {}
    return {"model": models.write_hf(model, tmp_path / "hf", **options), "base": gguf}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_logits_and_tokens_equal_those_of_torch(source, settings, model, load, tmp_path):
    report = export_gguf(output=tmp_path / "bundle", settings=settings, **source)
    vector = MicroVector.random(report.basis, 0.7, seed=3)
    llm = load(report.output)
    base = models.torch_logits(model, PROMPT)
    assert np.abs(models.llama_logits(llm, PROMPT) - base).max() < 1e-3

    llm.swap(vector.to_bytes(report.basis))
    with models.merged(model, report.basis, vector) as personal:
        expected = models.torch_logits(personal, PROMPT)
        tokens = models.torch_greedy(personal, PROMPT, 24)
    change = np.abs(expected - base).max()
    assert change > 1
    assert np.abs(models.llama_logits(llm, PROMPT) - expected).max() < 1e-4 * change
    assert models.llama_greedy(llm, PROMPT, 24) == tokens
    assert models.torch_greedy(model, PROMPT, 24) != tokens


OTHER_SETTINGS = {
    "f16 factors": ExportSettings(groups=5, factor_dtype="f16"),
    "rank 3": ExportSettings(groups=5, rank=3),
    "rank 1": ExportSettings(groups=5, rank=1, u=2),
    "structured": ExportSettings(groups=7, tying="structured", seed=2**64 - 1),
    "full": ExportSettings(u=13, tying="full"),
    "all of R": ExportSettings(u=4, groups=14),
    "some targets": ExportSettings(groups=2, targets=("attn_q", "blk.1.ffn_*")),
}


@pytest.mark.parametrize("settings", OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_every_setting_computes_what_the_basis_says(settings, tiny_models, llama_gguf, load, tmp_path):
    model = tiny_models["llama"]
    report = export_gguf(llama_gguf, tmp_path / "bundle", settings=settings)
    vector = MicroVector.random(report.basis, 0.7, seed=3)
    base = models.torch_logits(model, PROMPT)
    with models.merged(model, report.basis, vector) as personal:
        expected = models.torch_logits(personal, PROMPT)
    change = np.abs(expected - base).max()
    assert change > 0.1
    logits = models.llama_logits(load(report.output, vector), PROMPT)
    assert np.abs(logits - expected).max() < 1e-4 * change


def test_the_manifest_says_what_was_done(model, gguf, tmp_path):
    hf = models.write_hf(model, tmp_path / "hf")
    settings = ExportSettings(groups=4, factor_dtype="f16", seed=9)
    report = export_gguf(hf, tmp_path / "bundle", base=gguf, settings=settings)
    manifest = json.loads((report.output / "manifest.json").read_text("utf-8"))
    basis = report.basis
    assert sorted(path.name for path in report.output.iterdir()) == [
        "base.gguf",
        "basis.gguf",
        "manifest.json",
    ]
    assert manifest["format"] == 1
    assert manifest["tool"] == f"tinylora-edge {__version__}"
    assert manifest["architecture"] == basis.architecture
    assert manifest["base"] == {
        "file": "base.gguf",
        "name": gguf.name,
        "bytes": gguf.stat().st_size,
        "fingerprint": basis.base_fingerprints[0],
    }
    assert manifest["basis"] == {
        "file": "basis.gguf",
        "digest": basis.digest,
        "modules": 14,
        "rank": 2,
        "u": 1,
        "groups": 4,
        "seed": 9,
        "tying": "tiled",
        "projection": "irwin-hall-12/splitmix64",
        "factorization": "left",
        "factor_dtype": "f16",
    }
    assert manifest["factors"]["from"] == "hf"
    assert 0 < manifest["factors"]["worst_residual"] <= 1e-3
    assert manifest["factors"]["worst_residual_module"] in basis.modules
    assert manifest["factors"]["unconverged"] == []
    assert manifest["factors"]["passes"] == report.quality.passes > len(basis.modules)
    assert 0 <= manifest["factors"]["agreement"] < 1e-2


def test_factors_may_come_from_a_gguf_and_the_base_be_another(gguf, load, tmp_path):
    small = models.quantize_file(gguf, tmp_path / "q8.gguf", 7)
    report = export_gguf(gguf, tmp_path / "bundle", base=small)
    assert report.basis.digest == export_gguf(gguf, tmp_path / "other").basis.digest
    assert 0 < report.quality.agreement < 0.02
    assert (report.output / "base.gguf").samefile(small)
    load(report.output, MicroVector.random(report.basis, 0.3).to_bytes(report.basis))
