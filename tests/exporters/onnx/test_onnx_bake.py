"""A baked graph: bit for bit the base where v = 0, else the merged weights, with a vector for each row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import onnx
import onnx_models
import pytest
from onnx_models import TOKENS

from tinylora_edge import MicroVector, load_basis, load_bundle
from tinylora_edge.exporters import ExportSettings, export_onnx
from tinylora_edge.exporters.onnx.bake import bake
from tinylora_edge.modules import Heads

ARCHITECTURES = ("llama", "qwen2", "phi3")
SETTINGS = {
    "13 groups": ExportSettings(groups=None),
    "one group": ExportSettings(tying="full"),
    "u = 3": ExportSettings(groups=2, u=3),
    "u = 13": ExportSettings(u=13, tying="full"),
    "all of R": ExportSettings(u=4, groups=14),
    "rank 3, f16": ExportSettings(groups=4, rank=3, factor_dtype="f16"),
    "some kinds": ExportSettings(groups=2, targets=("attn_*[kv]", "ffn_up", "ffn_down")),
    "one kind": ExportSettings(groups=2, targets=("attn_v", "attn_output")),
}


@pytest.fixture(scope="module")
def baked(tmp_path_factory):
    """Bake a small model: baked(architecture, precision, settings, flavour) -> report of the export."""
    made = {}

    def run(architecture, precision="fp32", settings="13 groups", flavour="default"):
        key = architecture, precision, settings, flavour
        if key not in made:
            hf = onnx_models.tiny_hf(architecture)
            chosen = SETTINGS[settings]
            if settings in ("13 groups", "all of R") and architecture == "phi3":
                chosen = replace(chosen, groups=8)  # as many as it has modules
            made[key] = export_onnx(
                hf,
                tmp_path_factory.mktemp("baked") / "bundle",
                graph=onnx_models.graph(hf, precision),
                flavour=flavour,
                settings=chosen,
            )
        return made[key]

    return run


def folder(report):
    return report.output / "onnx"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("flavour", ["default", "required"])
def test_zeros_are_the_base_bit_for_bit(baked, architecture, precision, flavour):
    report = baked(architecture, precision, flavour=flavour)
    base = onnx_models.session(onnx_models.graph(onnx_models.tiny_hf(architecture), precision))
    ours = onnx_models.session(folder(report))
    zeros = np.zeros((1, report.basis.size), np.float32)
    for tokens in ([TOKENS], [TOKENS, TOKENS[::-1]], [TOKENS[:1]]):
        expected = onnx_models.logits(base, tokens)
        assert np.array_equal(onnx_models.logits(ours, tokens, zeros), expected)
        if flavour == "default":
            assert np.array_equal(onnx_models.logits(ours, tokens), expected)
    assert onnx_models.greedy(ours, TOKENS, 12, zeros) == onnx_models.greedy(base, TOKENS, 12)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_vector_is_the_merged_weights(baked, architecture, settings, record_property):
    if architecture == "phi3" and settings == "one kind":
        pytest.skip("its q, k and v are one module")
    report = baked(architecture, settings=settings)
    model = onnx_models.tiny(architecture)
    base = onnx_models.logits(onnx_models.session(folder(report)), [TOKENS])[0]
    vector = MicroVector.random(report.basis, 0.5, seed=3)
    ours = onnx_models.session(folder(report))
    found = onnx_models.logits(ours, [TOKENS], vector.values.reshape(-1))[0]
    with models.merged(model, report.basis, vector):
        expected = models.torch_logits(model, TOKENS)
        text = models.torch_greedy(model, TOKENS, 16)
    off, effect = np.abs(found - expected).max(), np.abs(expected - base).max()
    record_property("measured", f"off by {off:.2g}, effect {effect:.2g}")
    assert effect > 0.5
    assert off <= 1e-4
    assert onnx_models.greedy(ours, TOKENS, 16, vector.values.reshape(-1)) == text


@pytest.mark.parametrize("settings", ["13 groups", "u = 3", "all of R"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_every_row_of_a_batch_has_its_own_vector(baked, precision, settings):
    report = baked("llama", precision, settings)
    ours = onnx_models.session(folder(report))
    rng = np.random.default_rng(0)
    tokens = [[int(t) for t in rng.integers(0, 256, 9)] for _ in range(4)]
    v = (0.5 * rng.standard_normal((4, report.basis.size))).astype(np.float32)
    v[2] = 0
    together = onnx_models.logits(ours, tokens, v)
    for row in range(4):
        single = onnx_models.logits(ours, tokens[row : row + 1], v[row])[0]
        assert np.abs(together[row] - single).max() <= 1e-5
    assert np.abs(together[2] - onnx_models.logits(ours, tokens)[2]).max() <= 1e-5
    assert np.abs(together[1] - onnx_models.logits(ours, tokens)[1]).max() > 0.1


# What lies in the directory


def test_the_metadata_is_the_basis(baked):
    report = baked("llama", settings="u = 3")
    ours = onnx_models.session(folder(report))
    metadata = ours.get_modelmeta().custom_metadata_map
    basis = report.basis
    assert metadata["tinylora.version"] == "1"
    assert metadata["tinylora.digest"] == basis.digest == load_basis(report.output / "basis.gguf").digest
    assert metadata["tinylora.modules"].count("blk.") == len(basis.modules)
    expected = (str(basis.rank), str(basis.u), str(basis.groups), str(basis.seed), "default", "tiled")
    keys = ("rank", "u", "groups", "seed", "flavour", "tying")
    assert tuple(metadata[f"tinylora.{key}"] for key in keys) == expected
    assert metadata["tinylora.fingerprint"] in basis.base_fingerprints
    graph = onnx.load(folder(report) / "model.onnx", load_external_data=False).graph
    (value,) = (value for value in graph.input if value.name == "tinylora_v")
    rows, size = value.type.tensor_type.shape.dim
    assert (rows.dim_param, size.dim_value) == ("tinylora_rows", basis.size)
    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_added_nodes_are_of_the_standard_domain_and_few(baked):
    report = baked("llama")
    graph = onnx.load(folder(report) / "model.onnx", load_external_data=False).graph
    added = [node for node in graph.node if node.name.startswith("tinylora/")]
    assert {node.domain for node in added} == {""}
    assert len(added) == report.baked.added
    assert (
        report.baked.added <= 2 * 18 + 3 * 4
    )  # packed qkv 4, o 4, gate and up 6, down 4, in 2 blocks; all R
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_the_original_is_only_read(baked, tmp_path):
    source = onnx_models.graph(onnx_models.tiny_hf("llama"), "fp32")
    before = onnx_models.digests(source)
    basis = baked("llama").basis
    bake(source, basis, tmp_path, heads=Heads(4, 2))
    assert onnx_models.digests(source) == before
    copied = tmp_path / "model.onnx.data"
    assert copied.read_bytes() == (source / "model.onnx.data").read_bytes()
    assert not copied.samefile(source / "model.onnx.data")
    kept = {path.name for path in source.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"zeros.onnx_adapter"}


def test_the_basis_is_that_of_the_gguf(tmp_path):
    from tinylora_edge.exporters import export_gguf

    for architecture in ("llama", "qwen2"):
        hf = onnx_models.tiny_hf(architecture)
        gguf = models.write_gguf(onnx_models.tiny(architecture), tmp_path / f"{architecture}.gguf")
        graph = onnx_models.graph(hf, "fp32")
        reports = [
            export_gguf(hf, tmp_path / f"{architecture}-1", base=gguf),
            export_onnx(hf, tmp_path / f"{architecture}-2", graph=graph),
            export_onnx(hf, tmp_path / f"{architecture}-3", graph=graph, base=gguf, with_gguf=True),
        ]
        assert len({report.basis.digest for report in reports}) == 1
        both = Path(reports[2].output)
        assert load_basis(both / "basis.gguf").base_fingerprints == (
            *reports[0].basis.base_fingerprints,
            reports[1].baked.fingerprint,
        )
        assert load_bundle(both).base == both / "base.gguf"
        assert load_bundle(both).check_base() == reports[0].basis.base_fingerprints[0]
        assert load_bundle(both).check_onnx() == reports[1].baked.fingerprint
