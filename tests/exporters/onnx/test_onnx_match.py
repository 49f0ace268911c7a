"""Modules are found in graphs of any writer; what cannot be matched is refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_models
import onnx_toy
import pytest
from onnx import TensorProto, helper
from onnx_toy import STYLES, Writer, basis_of, compute, fused, random_weights, save
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from tinylora_edge import BaseMismatchError, ExportError, UnsupportedModelError
from tinylora_edge.exporters.onnx.bake import bake
from tinylora_edge.exporters.onnx.match import match
from tinylora_edge.exporters.onnx.model import OnnxModel
from tinylora_edge.modules import Heads

WEIGHTS = random_weights()
X = np.random.default_rng(1).standard_normal((3, 5, onnx_toy.HIDDEN)).astype(np.float32) / 4


def baked(model, basis, tmp_path, **options):
    source = model if hasattr(model, "joinpath") else save(model, tmp_path / "source")
    output = tmp_path / "output"
    output.mkdir()
    bake(source, basis.factors, output, **options)
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
def test_graphs_of_every_writer(style, modules, bias, tmp_path):
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
    ours = baked(Writer(WEIGHTS, "packed").model(), basis, tmp_path, heads=Heads(queries=4, keys=2))
    in_graph = tuple(
        b[np.argsort(order)] if "qkv" in module else b
        for module, b in zip(basis.modules, basis.factors.b, strict=True)
    )
    (v,) = random_vectors(basis)
    expected = compute(merged(replace(basis, factors=replace(basis.factors, b=in_graph)), v), X)
    assert np.abs(run(ours, basis, [v]) - expected).max() <= 2e-5 * np.abs(expected).max()


def test_half_precision(tmp_path):
    model = Writer(WEIGHTS, "builder").model()
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    basis = basis_of(WEIGHTS)
    ours = baked(model, basis, tmp_path)
    x, v = X.astype(np.float16), np.full(basis.size, 0.5, np.float32)
    assert np.array_equal(run(ours, x=x), run(onnx_models.session(tmp_path / "source"), x=x))
    expected = compute(merged(basis, v), x.astype(np.float32))
    assert np.abs(run(ours, basis, [v], x) - expected).max() <= 2e-2 * np.abs(expected).max()


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("style", ["packed", "optimum"])
def test_quantized_weights(style, bits, symmetric, tmp_path):
    quantizer = MatMulNBitsQuantizer(
        Writer(WEIGHTS, style).model(), bits=bits, block_size=32, is_symmetric=symmetric, accuracy_level=0
    )
    quantizer.process()
    source = save(quantizer.model.model, tmp_path / "source")
    basis = basis_of(WEIGHTS)
    ours = baked(source, basis, tmp_path)
    assert np.array_equal(run(ours), run(onnx_models.session(source)))

    model = OnnxModel(source / "model.onnx")
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
    source = model if hasattr(model, "joinpath") else save(model, tmp_path / "source")
    folder = source if source.is_dir() else source.parent
    before = onnx_models.digests(folder) if folder.is_dir() else {}
    output = tmp_path / "output"
    output.mkdir()
    with pytest.raises(error, match=match):
        bake(source, basis.factors, output)
    assert list(output.iterdir()) == []
    assert not before or onnx_models.digests(folder) == before


def test_layers_without_names(tmp_path):
    model = Writer(WEIGHTS, "optimum").model()
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    refused(
        UnsupportedModelError,
        r"14 of 14 modules have no node .*blk\.0\.attn_q.*n0",
        model,
        basis_of(WEIGHTS),
        tmp_path,
    )


@pytest.mark.parametrize("style", ["builder", "packed"])
def test_weights_of_another_model(style, tmp_path):
    model = Writer(random_weights(seed=9), style).model()
    refused(
        BaseMismatchError,
        r"blk\.0\.attn_q\.weight is .* away from .* node /model",
        model,
        basis_of(WEIGHTS),
        tmp_path,
    )


def test_factors_of_another_shape(tmp_path):
    narrow = {name: w[:, :48] if "attn_q" in name else w for name, w in WEIGHTS.items()}
    refused(
        BaseMismatchError,
        r"attn_q\.weight has factors for 48 x 64.* K = 64",
        Writer(WEIGHTS, "builder").model(),
        basis_of(narrow),
        tmp_path,
    )
    (tmp_path / "output").rmdir()
    short = {name: w[:48] if "attn_q" in name else w for name, w in WEIGHTS.items()}
    refused(
        BaseMismatchError,
        r"attn_q\.weight has factors for 64 x 48.* N = 64",
        Writer(WEIGHTS, "builder").model(),
        basis_of(short),
        tmp_path,
    )


def test_a_graph_that_was_baked_already(tmp_path):
    baked(Writer(WEIGHTS, "builder").model(), basis_of(WEIGHTS), tmp_path)
    (tmp_path / "output").rename(tmp_path / "first")
    refused(ExportError, "baked already .*tinylora", tmp_path / "first", basis_of(WEIGHTS), tmp_path)


def test_a_gemm(tmp_path):
    model = Writer(WEIGHTS, "builder").model()
    next(node for node in model.graph.node if "o_proj" in node.name).op_type = "Gemm"
    refused(UnsupportedModelError, "o_proj.* is a Gemm", model, basis_of(WEIGHTS), tmp_path)


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("../model.onnx.data", "refers to external data"),
        ("/etc/hostname", "refers to external data"),
        ("", "refers to external data"),
        ("none.bin", "no such file"),
        ("é" * 200, "no such file"),
        ("a\0b", "no such file"),
    ],
)
def test_data_outside_the_folder(location, why, tmp_path):
    source = save(Writer(WEIGHTS, "builder").model(), tmp_path / "source")
    model = onnx.load(source / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (source / "model.onnx").write_bytes(model.SerializeToString())
    refused(ExportError, why, source, basis_of(WEIGHTS), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no model",
        b"\x08\x0a" * 40,
        helper.make_model(helper.make_graph([], "empty", [], [])).SerializeToString(),
    ],
)
def test_files_that_are_no_models(content, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(content)
    refused(ExportError, "is not an ONNX model|opset", source, basis_of(WEIGHTS), tmp_path)
