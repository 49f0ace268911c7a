"""A baked graph: bit for bit the base where R = 0, else the merged weights.

A vector for each row of a batch: tests/runtime/onnx/test_onnx_session.py and, quantized, test_same_answers.
"""

from __future__ import annotations

import json
from pathlib import Path

import models
import numpy as np
import onnx
import onnx_models
import pytest
import support
from onnx_models import TOKENS

from tinylora_edge import Basis, MicroVector, load_bundle
from tinylora_edge.exporters import ExportSettings

ARCHITECTURES = ("llama", "qwen2", "phi3")
SETTINGS = {
    "rank 8": ExportSettings(),
    "rank 1": ExportSettings(rank=1),
    "rank 3, f32": ExportSettings(rank=3, factor_dtype="f32"),
    "some kinds": ExportSettings(rank=2, targets=("attn_*[kv]", "ffn_up", "ffn_down")),
    "one kind": ExportSettings(targets=("attn_v", "attn_output")),
    "12 outputs": ExportSettings(rank=4, outputs=12),
    "40 outputs": ExportSettings(rank=4, outputs=40),  # k and v have 32
}


@pytest.fixture(scope="module")
def baked(tmp_path_factory):
    """Bake a small model: baked(architecture, precision, settings, flavour) -> report of the export."""
    made = {}

    def run(architecture, precision="fp32", settings="rank 8", flavour="default"):
        key = architecture, precision, settings, flavour
        if key not in made:
            hf = onnx_models.tiny_hf(architecture)
            output = tmp_path_factory.mktemp("baked") / "bundle"
            options = {"flavour": flavour, "settings": SETTINGS[settings]}
            made[key] = onnx_models.export(hf, output, precision, **options)
        return made[key]

    return run


def vectors(bases):
    """A vector of each kind and size that the bases take, and its basis."""
    of = [bases.basis(rank=rank) for rank in range(1, bases.factors.rank + 1)]
    if bases.factors.outputs > bases.factors.rank:
        of += [bases.basis(rank=shape) for shape in (bases.factors.shape, (7, 3), (1, 4))]
    if bases.factors.rank > 1:
        of += [bases.basis(numbers=3)]
        learned = support.learned(bases.factors)
        of += [Basis(bases.factors, learned)]
    for basis in of:
        yield basis, MicroVector.random(basis, 0.5, seed=3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("flavour", ["default", "required"])
def test_zeros_are_the_base_bit_for_bit(baked, architecture, precision, flavour):
    report = baked(architecture, precision, flavour=flavour)
    base = onnx_models.session(onnx_models.graph(onnx_models.tiny_hf(architecture), precision))
    ours = onnx_models.session(report.output / "onnx")
    factors = report.bases.factors
    zeros = np.zeros((1, factors.r_size), np.float32)
    for tokens in ([TOKENS], [TOKENS, TOKENS[::-1]], [TOKENS[:1]]):
        expected = onnx_models.logits(base, tokens)
        assert np.array_equal(onnx_models.logits(ours, tokens, zeros), expected)
        if flavour == "default":
            assert np.array_equal(onnx_models.logits(ours, tokens), expected)
    assert onnx_models.greedy(ours, TOKENS, 12, zeros) == onnx_models.greedy(base, TOKENS, 12)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_vector_is_the_merged_weights(baked, architecture, settings):
    if architecture == "phi3" and settings == "one kind":
        pytest.skip("its q, k and v are one module")
    report = baked(architecture, settings=settings)
    model = onnx_models.tiny(architecture)
    ours = onnx_models.session(report.output / "onnx")
    base = onnx_models.logits(ours, [TOKENS])[0]
    for basis, vector in vectors(report.bases):
        row = onnx_models.row(basis, vector)
        found = onnx_models.logits(ours, [TOKENS], row)[0]
        with models.merged(model, basis, vector):
            expected = models.torch_logits(model, TOKENS)
            text = models.torch_greedy(model, TOKENS, 8)
        off, effect = np.abs(found - expected).max(), np.abs(expected - base).max()
        assert effect > 0.1
        assert off <= 1e-4
        assert onnx_models.greedy(ours, TOKENS, 8, row) == text


@pytest.mark.parametrize(
    ("settings", "rank", "outputs", "entries"), [("rank 3, f32", "3", None, 9), ("12 outputs", "4", "12", 48)]
)
def test_the_metadata_names_the_factors(baked, settings, rank, outputs, entries):
    report = baked("llama", settings=settings)
    metadata = onnx_models.session(report.output / "onnx").get_modelmeta().custom_metadata_map
    factors = load_bundle(report.output).factors
    assert metadata["tinylora.version"] == "2"
    assert metadata["tinylora.factors"] == factors.digest == report.bases.factors.digest
    assert json.loads(metadata["tinylora.modules"]) == list(factors.modules)
    assert (metadata["tinylora.rank"], metadata.get("tinylora.outputs")) == (rank, outputs)
    assert metadata["tinylora.flavour"] == "default"
    graph = onnx.load(report.output / "onnx" / "model.onnx", load_external_data=False).graph
    (value,) = (value for value in graph.input if value.name == "tinylora_r")
    rows, size = value.type.tensor_type.shape.dim
    assert (rows.dim_param, size.dim_value) == ("tinylora_rows", len(factors.modules) * entries)
    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_only_the_graph_is_changed(baked):
    source, ours = onnx_models.graph(onnx_models.tiny_hf("llama"), "fp32"), baked("llama").output / "onnx"
    before, after = onnx_models.digests(source), onnx_models.digests(ours)
    assert after.keys() == before.keys() | {"zeros.onnx_adapter"}
    assert {name for name in before if after[name] != before[name]} == {"model.onnx"}


def test_the_factors_are_those_of_the_gguf(tmp_path):
    from tinylora_edge.exporters import export_gguf

    for architecture in ("llama", "qwen2"):
        hf = onnx_models.tiny_hf(architecture)
        gguf = models.write_gguf(onnx_models.tiny(architecture), tmp_path / f"{architecture}.gguf")
        reports = [
            export_gguf(hf, tmp_path / f"{architecture}-1", base=gguf, settings=ExportSettings(outputs=8)),
            onnx_models.export(hf, tmp_path / f"{architecture}-2"),
            onnx_models.export(hf, tmp_path / f"{architecture}-3", base=gguf, with_gguf=True),
        ]
        assert len({report.bases.factors.digest for report in reports}) == 1
        both = Path(reports[2].output)
        fingerprints = (*reports[0].bases.fingerprints, reports[1].onnx["fingerprint"])
        assert load_bundle(both).bases.fingerprints == fingerprints
        assert load_bundle(both).base == both / "base.gguf"
        assert load_bundle(both).check_base() == reports[0].bases.fingerprints[0]
        assert load_bundle(both).check_onnx() == reports[1].onnx["fingerprint"]
