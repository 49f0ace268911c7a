"""Bundles of a small model: what they compute, and what is in them; whole, and in several files."""

from __future__ import annotations

import json

import models
import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter

from tinylora_edge import MicroVector, __version__, load_bundle
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.runtime.batch import Batch

PROMPT = list(b"one two three four")


OTHER_SETTINGS = {
    "f32 factors": (ExportSettings(factor_dtype="f32"), {"numbers": 5}),
    "rank 3": (ExportSettings(rank=3), {"rank": 3}),
    "rank 1": (ExportSettings(rank=1), {"rank": 1}),
    "5 outputs": (ExportSettings(rank=2, outputs=5), {"rank": (5, 2)}),
    "fewer outputs than inputs": (ExportSettings(outputs=12), {"rank": (1, 8)}),
    "more outputs than k and v have": (ExportSettings(outputs=40), {"rank": (36, 8)}),
    "a square of more outputs": (ExportSettings(rank=3, outputs=12), {"rank": 2}),
    "some targets": (ExportSettings(targets=("attn_q", "blk.1.ffn_*")), {"numbers": 2}),
}


@pytest.mark.parametrize(("settings", "size"), OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_every_setting_computes_what_the_basis_says(settings, size, tiny_model, tiny_gguf, load, tmp_path):
    report = export_gguf(tiny_gguf, tmp_path / "bundle", settings=settings)
    basis = report.bases.basis(**size)
    vector = MicroVector.random(basis, 1.0, seed=3)
    base = models.torch_logits(tiny_model, PROMPT)
    with models.merged(tiny_model, basis, vector) as personal:
        expected = models.torch_logits(personal, PROMPT)
    change = np.abs(expected - base).max()
    assert change > 0.1
    logits = models.llama_logits(load(report.output, vector), PROMPT)
    assert np.abs(logits - expected).max() < 1e-4 * change


def test_users_beside_each_other_where_k_and_v_have_fewer_outputs(tiny_model, tiny_gguf, load, tmp_path):
    report = export_gguf(tiny_gguf, tmp_path / "bundle", settings=ExportSettings(outputs=40))
    llm = load(report.output, type_k=0, type_v=0)
    basis = report.bases.basis(rank=(40, 8))
    vectors = [MicroVector.random(basis, 1.0, seed=seed) for seed in (3, 4)]
    with Batch(llm, n_ctx_seq=64, sequences=2, n_threads=1) as batch:
        drawn = batch.generate([PROMPT, PROMPT], vectors=vectors, max_tokens=8)
    for vector, one in zip(vectors, drawn, strict=True):
        tokens = [int(token) for token in one.tokens]
        with models.merged(tiny_model, basis, vector) as personal:
            logits = models.torch_logits(personal, PROMPT + tokens)[len(PROMPT) - 1 : -1]
        assert logits.argmax(axis=1).tolist() == tokens


def test_heads_may_be_counted_block_by_block(tiny_weights, tmp_path, monkeypatch):
    def array(writer, heads):
        writer.add_key_value(f"{writer.arch}.attention.head_count_kv", [heads] * 2, GGUFValueType.ARRAY)

    monkeypatch.setattr(GGUFWriter, "add_head_count_kv", array)
    base = models.write_gguf(models.tiny_model("llama"), tmp_path / "base.gguf")
    assert export_gguf(tiny_weights, tmp_path / "bundle", base=base).quality["agreement"] < 1e-2


def test_the_manifest_says_what_was_done(tiny_weights, tiny_gguf, tmp_path):
    report = export_gguf(tiny_weights, tmp_path / "bundle", base=tiny_gguf)
    manifest = json.loads((report.output / "manifest.json").read_text("utf-8"))
    factors = report.bases.factors
    basis, made = manifest["basis"], manifest["factors"]
    assert {path.name for path in report.output.iterdir()} == {"base.gguf", "basis.gguf", "manifest.json"}
    assert (manifest["format"], manifest["tool"]) == (2, f"tinylora-edge {__version__}")
    assert manifest["architecture"] == factors.architecture
    assert manifest["base"] == {
        "file": "base.gguf",
        "name": tiny_gguf.name,
        "bytes": tiny_gguf.stat().st_size,
        "fingerprint": report.bases.fingerprints[0],
    }
    assert (basis["factors"], basis["modules"], basis["rank"]) == (factors.digest, 14, 8)
    assert (basis["projections"], basis["factorization"], basis["factor_dtype"]) == ([], "left", "f16")
    assert (made["from"], made["unconverged"], made) == ("hf", [], report.quality)
    assert 0 < made["worst_residual"] <= 1e-3
    assert made["worst_residual_module"] in factors.modules
    assert 0 <= made["agreement"] < 1e-2


def test_factors_may_come_from_a_gguf_and_the_base_be_another(tiny_gguf, load, tmp_path):
    small = models.quantize_file(tiny_gguf, tmp_path / "q8.gguf", 7)
    report = export_gguf(tiny_gguf, tmp_path / "bundle", base=small)
    assert report.bases.factors.digest == export_gguf(tiny_gguf, tmp_path / "other").bases.factors.digest
    assert 0 < report.quality["agreement"] < 0.02
    assert (report.output / "base.gguf").samefile(small)
    basis = report.bases.basis(numbers=13)
    load(report.output, MicroVector.random(basis, 0.3).to_bytes(basis))


def test_the_bundle_of_a_split_model_is_that_of_the_whole(tiny_gguf, tmp_path, load):
    parts = models.split_gguf(tiny_gguf, tmp_path, 6)
    whole = export_gguf(tiny_gguf, tmp_path / "whole")
    split = export_gguf(parts[0], tmp_path / "bundle")
    assert split.bases.factors.digest == whole.bases.factors.digest
    assert split.bases.fingerprints == whole.bases.fingerprints
    placed = sorted(path.name for path in split.output.glob("*.gguf") if path.name != "basis.gguf")
    assert placed == [f"base-{i + 1:05}-of-{len(parts):05}.gguf" for i in range(len(parts))]
    bundle = load_bundle(split.output)
    assert bundle.base.name == placed[0]
    assert bundle.manifest["base"]["bytes"] == sum(path.stat().st_size for path in parts)
    assert bundle.manifest["base"]["file"] == placed[0]
    assert load_bundle(bundle.base) == bundle

    vector = MicroVector.random(split.bases.basis(rank=8), 0.5)
    one, two = load(whole.output, vector), load(split.output, vector)
    assert np.array_equal(models.llama_logits(one, PROMPT), models.llama_logits(two, PROMPT))
