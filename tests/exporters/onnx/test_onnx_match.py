"""Modules are found in the builder's graphs; what cannot be matched is refused by name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_models
import onnx_toy
import pytest
from onnx_toy import STYLES, Writer, basis_of, compute, fused, random_weights, save
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from tinylora_edge import BaseMismatchError, UnsupportedModelError
from tinylora_edge.exporters.onnx.bake import bake
from tinylora_edge.exporters.onnx.graph import OnnxModel, match
from tinylora_edge.modules import Heads

WEIGHTS = random_weights()
X = np.random.default_rng(1).standard_normal((3, 5, onnx_toy.HIDDEN)).astype(np.float32) / 4


def baked(source, basis, tmp_path, heads=Heads()):  # noqa: B008 - immutable
    output = Path(shutil.copytree(source, tmp_path / "output"))
    bake(output, basis.factors, heads)
    return onnx_models.session(output)


def run(session, basis=None, vectors=(), x=X):
    rows = {"tinylora_r": np.stack([onnx_models.row(basis, v) for v in vectors])} if basis else {}
    return session.run(["logits"], {"hidden": x} | rows)[0]


def random_vectors(basis, count=1):
    return np.random.default_rng(2).standard_normal((count, basis.size)).astype(np.float32) / 4


def merged(basis, v, weights=WEIGHTS):
    """The weights with a vector merged in, whatever modules the basis has."""
    result = {name: weight.astype(np.float64) for name, weight in weights.items()}
    for module in basis.modules:
        delta = basis.delta(module, v)
        _, block, kind, _ = module.split(".")
        names = {"attn_qkv": ["attn_q", "attn_k", "attn_v"]}.get(kind, [kind])
        if kind == "ffn_up" and len(delta) == 2 * onnx_toy.MIDDLE:
            names = ["ffn_gate", "ffn_up"]
        row = 0
        for name in names:
            target = result[f"blk.{block}.{name}.weight"]
            target += delta[row : row + len(target)]
            row += len(target)
    return result


@pytest.mark.parametrize("bias", [0.0, 0.25], ids=["no bias", "bias"])
@pytest.mark.parametrize("modules", ["one each", "fused"])
@pytest.mark.parametrize("style", STYLES)
def test_modules_of_one_node_and_of_several(style, modules, bias, tmp_path):
    basis = basis_of(WEIGHTS if modules == "one each" else fused(WEIGHTS))
    source = save(Writer(WEIGHTS, style, bias=bias).model(), tmp_path / "source")
    ours = baked(source, basis, tmp_path)
    base = run(onnx_models.session(source))
    assert np.array_equal(run(ours), base)
    vectors = random_vectors(basis, 3)
    found = run(ours, basis, vectors)
    for row, v in enumerate(vectors):
        expected = compute(merged(basis, v), X[row : row + 1], bias)[0]
        assert np.abs(expected - base[row]).max() > 0.1
        assert np.abs(found[row] - expected).max() <= 2e-5 * np.abs(expected).max()


def test_fused_layers_of_another_row_order(tmp_path):
    """As Falcon's: q, k and v lie head by head in the graph; in the GGUF all q, then all k, then all v."""
    numbers = np.arange(128).reshape(2, 4, 16)  # heads of k; two queries, k, v; rows of a head
    order = np.concatenate([numbers[:, :2].reshape(-1), numbers[:, 2].reshape(-1), numbers[:, 3].reshape(-1)])
    stacked = {name: w[order] if "qkv" in name else w for name, w in fused(WEIGHTS).items()}
    basis = basis_of(stacked)
    source = save(Writer(WEIGHTS, "packed").model(), tmp_path / "source")
    ours = baked(source, basis, tmp_path, Heads(queries=4, keys=2))
    in_graph = tuple(
        b[np.argsort(order)] if "qkv" in module else b
        for module, b in zip(basis.modules, basis.factors.b, strict=True)
    )
    (v,) = random_vectors(basis)
    expected = compute(merged(replace(basis, factors=replace(basis.factors, b=in_graph)), v), X)
    assert np.abs(run(ours, basis, [v]) - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("style", STYLES)
def test_quantized_weights(style, bits, tmp_path):
    quantizer = MatMulNBitsQuantizer(
        Writer(WEIGHTS, style).model(), bits=bits, block_size=32, is_symmetric=True, accuracy_level=0
    )
    quantizer.process()
    source = save(quantizer.model.model, tmp_path / "source")
    basis = basis_of(WEIGHTS)
    ours = baked(source, basis, tmp_path)
    assert np.array_equal(run(ours), run(onnx_models.session(source)))

    model = OnnxModel(source)
    stored = {}
    for site in match(model, basis.factors):
        values = site.linear.weight.rows(model, 0, site.linear.n_out)
        for part in site.parts:
            stored[part.module] = values[part.column : part.column + part.count]
    worst = max(np.abs(stored[name] - w).max() / np.abs(w).max() for name, w in WEIGHTS.items())
    assert worst < (0.15 if bits == 4 else 0.01)
    (v,) = random_vectors(basis)
    for vector, weights in ((0 * v, stored), (v, merged(basis, v, stored))):
        expected = compute(weights, X)
        assert np.abs(run(ours, basis, [vector]) - expected).max() <= 1e-4 * np.abs(expected).max()


# Refusals


def refused(error, match, model, basis, tmp_path):
    folder = save(model, tmp_path / "source")
    before = onnx_models.digests(folder)
    with pytest.raises(error, match=match):
        bake(folder, basis.factors, Heads())
    assert onnx_models.digests(folder) == before


def test_layers_without_names(tmp_path):
    model = Writer(WEIGHTS, "single").model()
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    what = r"14 of 14 modules have no node .*blk\.0\.attn_q"
    refused(UnsupportedModelError, what, model, basis_of(WEIGHTS), tmp_path)


@pytest.mark.parametrize("style", STYLES)
def test_weights_of_another_model(style, tmp_path):
    model = Writer(random_weights(seed=9), style).model()
    what = r"blk\.0\.attn_q\.weight is .* away from .* node /model"
    refused(BaseMismatchError, what, model, basis_of(WEIGHTS), tmp_path)


@pytest.mark.parametrize(
    ("part", "what"),
    [(np.s_[:, :48], r"has factors for 48 x 64.* K = 64"), (np.s_[:48], r"has factors for 64 x 48.* N = 64")],
)
def test_factors_of_another_shape(part, what, tmp_path):
    other = {name: w[part] if "attn_q" in name else w for name, w in WEIGHTS.items()}
    model = Writer(WEIGHTS, "single").model()
    refused(BaseMismatchError, what, model, basis_of(other), tmp_path)


def test_a_gemm(tmp_path):
    model = Writer(WEIGHTS, "single").model()
    next(node for node in model.graph.node if "o_proj" in node.name).op_type = "Gemm"
    refused(UnsupportedModelError, "o_proj.* is a Gemm", model, basis_of(WEIGHTS), tmp_path)


def test_zero_points(tmp_path):
    quantizer = MatMulNBitsQuantizer(Writer(WEIGHTS, "single").model(), block_size=32, is_symmetric=False)
    quantizer.process()
    what = "MatMulNBits with 3 tensors.* symmetric"
    refused(UnsupportedModelError, what, quantizer.model.model, basis_of(WEIGHTS), tmp_path)
