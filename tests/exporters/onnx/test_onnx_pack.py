"""Packed graphs keep the weights of the GGUF that they were built from, bit for bit or to 8 bits."""

from __future__ import annotations

import shutil

import gguf
import models
import numpy as np
import onnx_models
import pytest
from onnx_models import TOKENS

from tinylora_edge import BaseMismatchError, MicroVector
from tinylora_edge.exporters import export_gguf
from tinylora_edge.exporters.onnx.bake import bake
from tinylora_edge.exporters.onnx.graph import HEAD, BlockWeight, OnnxModel, linear_nodes, place
from tinylora_edge.exporters.onnx.pack import Packed, pack
from tinylora_edge.exporters.weights.hf import HFConfig
from tinylora_edge.modules import Heads

TYPES = gguf.GGMLQuantizationType
WEIGHTS = 16  # of the small model: 14 layers, the head, the table of embeddings


@pytest.fixture(scope="module")
def source():
    return onnx_models.tiny_hf("llama")


@pytest.fixture
def heads(source):
    return HFConfig(source).heads


def quantized(path, kinds, model=None):
    """Write the small model as a GGUF of one type, or of types by kind of tensor, else Q8_0."""
    model, raw, packed = model or onnx_models.tiny("llama"), {}, {}
    for name, weight in models.gguf_tensors(model).items():
        if weight.ndim == 2:
            raw[name] = kinds if isinstance(kinds, TYPES) else kinds.get(name.split(".")[-2], TYPES.Q8_0)
            packed[name] = gguf.quantize(weight, raw[name])
    return models.write_gguf(model, path, raw=raw, packed=packed)


def floats(source, file, folder):
    """The graph of floats that is built of a GGUF: the small model's, with the file's values."""
    shutil.copytree(onnx_models.graph(source, "fp32"), folder)
    model, values = OnnxModel(folder), {}
    for tensor in gguf.GGUFReader(file).tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.startswith("blk"):
            array = models.to_hf_rows(onnx_models.tiny("llama"), tensor.name, array)
        values[tensor.name] = array
    found, tables = linear_nodes(model), {"model.embed_tokens.weight": values["token_embd.weight"]}
    shapes = {name: each.shape for name, each in values.items() if "blk" in name and each.ndim == 2}
    for site in place(found, shapes):
        parts = sorted(site.parts, key=lambda part: part.column)
        tables[site.linear.weight.tensor.name] = np.concatenate([values[part.module] for part in parts]).T
    (head,) = (linear for linear in found if linear.place[1] == HEAD)
    tables[head.weight.tensor.name] = values["output.weight"].T
    with open(folder / "model.onnx.data", "r+b") as data:
        for name, table in tables.items():
            data.seek(next(int(e.value) for e in model.initializers[name].external_data if e.key == "offset"))
            data.write(np.ascontiguousarray(table, np.float32).tobytes())
    return folder


def packed(graph, folder, file, heads):
    """Pack a graph, which is used up; return the counts, and node -> weight, its values, the graph's."""
    plain, target = stored(graph), folder / "packed"
    target.mkdir()
    found = pack(graph, target, file, heads)
    return found, {name: (*each, plain[name][1]) for name, each in stored(target).items()}


def stored(folder):
    model = OnnxModel(folder)
    return {n.name: (n.weight, n.weight.rows(model, 0, n.n_out)) for n in linear_nodes(model)}


def rounded(values, wanted):
    """Whether values are those of 8 bits in blocks of 32."""
    off, largest = (np.abs(e).reshape(len(values), -1, 32).max(axis=-1) for e in (values - wanted, wanted))
    return (off <= largest / 254 * (1 + 1e-5)).all()


@pytest.mark.parametrize(("kind", "bits"), [(TYPES.Q4_0, 4), (TYPES.Q8_0, 8)])
def test_weights_of_one_scale_are_kept_bit_for_bit(kind, bits, source, heads, tmp_path):
    file = quantized(tmp_path / "model.gguf", kind)
    graph = floats(source, file, tmp_path / "graph")
    base = onnx_models.logits(onnx_models.session(graph), [TOKENS])
    factors = export_gguf(file, tmp_path / "bundle").bases
    basis = factors.basis(rank=2)
    row = onnx_models.row(basis, MicroVector.random(basis, 2.0, seed=1))
    baked = shutil.copytree(graph, tmp_path / "baked")
    bake(baked, factors.factors, heads)
    personal = onnx_models.logits(onnx_models.session(baked), [TOKENS], row)
    assert np.abs(personal - base).max() > 0.1 * np.abs(base).max()

    found, weights = packed(graph, tmp_path, file, heads)
    assert found == Packed(kept=WEIGHTS)
    for weight, values, wanted in weights.values():
        assert weight.bits == bits
        assert np.array_equal(values, wanted)
    left = [tensor for tensor in OnnxModel(tmp_path / "packed").graph.initializer if len(tensor.dims) == 2]
    assert not [tensor.name for tensor in left if tensor.name.endswith("weight")]
    # The engine reads the codes in the same order: what is left is the rounding of activations.
    assert bake(tmp_path / "packed", factors.factors, heads)[1] < 1e-2
    ours = onnx_models.session(tmp_path / "packed")
    for r, right in ((None, base), (row, personal)):
        assert np.abs(onnx_models.logits(ours, [TOKENS], r) - right).max() < 0.03 * np.abs(right).max()


@pytest.mark.parametrize("kind", [TYPES.Q4_1, TYPES.Q5_0])
def test_other_types_are_rounded_to_8_bits(kind, source, heads, tmp_path):
    file = quantized(tmp_path / "model.gguf", kind)
    found, weights = packed(floats(source, file, tmp_path / "graph"), tmp_path, file, heads)
    assert found == Packed(rounded=WEIGHTS)
    for weight, values, wanted in weights.values():
        assert weight.bits == 8
        assert rounded(values, wanted)


def test_types_are_mixed(source, heads, tmp_path):
    """Packed q, k and v are one node, of as many bits as one of them needs; floats stay floats."""
    types = {"attn_q": TYPES.Q4_0, "attn_k": TYPES.Q4_0, "attn_output": TYPES.F16, "ffn_down": TYPES.Q4_1}
    file = quantized(tmp_path / "model.gguf", types)
    found, weights = packed(floats(source, file, tmp_path / "graph"), tmp_path, file, heads)
    assert found == Packed(kept=WEIGHTS - 4, rounded=2, floats=2)
    for name, (weight, values, wanted) in weights.items():
        assert isinstance(weight, BlockWeight) == ("o_proj" not in name)
        assert np.array_equal(values, wanted) == ("down_proj" not in name)


def test_the_graph_says_what_a_weight_is(source, tmp_path):
    """A graph that has other values than the GGUF, or rows in an order that is not known, keeps its own."""
    file = quantized(tmp_path / "model.gguf", TYPES.Q4_0)
    four = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "output", "token_embd")
    other = quantized(tmp_path / "other.gguf", dict.fromkeys(four, TYPES.Q4_0))
    found, weights = packed(floats(source, other, tmp_path / "graph"), tmp_path, file, Heads())
    # Rounded are down, whose values differ, and q and k, whose heads are not known.
    assert found == Packed(kept=WEIGHTS - 6, rounded=6)
    assert all(rounded(values, wanted) for _, values, wanted in weights.values())


@pytest.mark.parametrize("from_gguf", [False, True])
def test_weights_that_were_never_quantized(from_gguf, source, heads, tmp_path):
    file = quantized(tmp_path / "model.gguf", TYPES.F16)
    graph = floats(source, file, tmp_path / "graph")
    found, weights = packed(graph, tmp_path, file if from_gguf else None, heads)
    assert found == Packed(rounded=12)  # nodes
    assert {weight.bits for weight, _, _ in weights.values()} == {8}


def test_a_gguf_of_another_shape(source, heads, tmp_path):
    file = quantized(tmp_path / "model.gguf", TYPES.Q8_0, models.tiny_model("llama", hidden=128))
    graph = shutil.copytree(onnx_models.graph(source, "fp32"), tmp_path / "graph")
    with pytest.raises(BaseMismatchError):
        packed(graph, tmp_path, file, heads)
