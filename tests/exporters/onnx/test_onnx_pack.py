"""Packed graphs keep the weights of the GGUF that they were built from, bit for bit or to 8 bits."""

from __future__ import annotations

import gguf
import numpy as np
import onnx_models
import onnx_toy
import pytest
from onnx_toy import HIDDEN, Writer, basis_of, compute, random_weights, save

from tinylora_edge import BaseMismatchError
from tinylora_edge.exporters.onnx.bake import bake
from tinylora_edge.exporters.onnx.graph import BlockWeight, OnnxModel, linear_nodes
from tinylora_edge.exporters.onnx.pack import Packed, pack
from tinylora_edge.modules import Heads

TYPES = gguf.GGMLQuantizationType
HEADS = Heads(queries=4, keys=2)
X = np.random.default_rng(1).standard_normal((3, 5, HIDDEN)).astype(np.float32) / 4


def in_gguf_order(name, weight):
    """As convert_hf_to_gguf permutes q and k of Llama: [head, half, i] -> [head, i, half]."""
    heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[2])
    return (
        weight if heads is None else weight.reshape(heads, 2, -1, HIDDEN).swapaxes(1, 2).reshape(weight.shape)
    )


def back(name, weight):
    heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[2])
    return (
        weight if heads is None else weight.reshape(heads, -1, 2, HIDDEN).swapaxes(1, 2).reshape(weight.shape)
    )


def write(path, types, weights=None):
    """Write a GGUF of the toy's weights; return its values as the graph has them, and in the GGUF's order."""
    writer = gguf.GGUFWriter(path / "model.gguf", "llama")
    writer.add_block_count(onnx_toy.BLOCKS)
    plain, ordered = {}, {}
    for name, weight in (weights or random_weights()).items():
        kind = types if isinstance(types, TYPES) else types.get(name.split(".")[2], TYPES.Q8_0)
        raw = gguf.quantize(np.ascontiguousarray(in_gguf_order(name, weight)), kind)
        ordered[name] = gguf.dequantize(raw, kind)
        plain[name] = np.ascontiguousarray(back(name, ordered[name]))
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path / "model.gguf", plain, ordered


def packed(tmp_path, file, plain, style="single", heads=HEADS):
    graph = save(Writer(plain, style).model(), tmp_path / "graph")
    target = tmp_path / "packed"
    target.mkdir()
    found = pack(graph, target, file, heads)
    return found, target


def stored(target):
    """Node -> its weight as it is stored, and its values [out, in]."""
    model = OnnxModel(target)
    return {
        linear.name: (linear.weight, linear.weight.rows(model, 0, linear.n_out))
        for linear in linear_nodes(model)
    }


def expected(plain, style):
    """Values of the nodes' weights, in the order of the graph."""
    model = Writer(plain, style).model()
    values = {tensor.name: onnx_toy.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "MatMul"]
    return {node.name: values[node.input[1]].T for node in nodes}


@pytest.mark.parametrize("style", ["single", "packed"])
@pytest.mark.parametrize(("kind", "bits"), [(TYPES.Q4_0, 4), (TYPES.Q8_0, 8)])
def test_weights_of_one_scale_are_kept_bit_for_bit(kind, bits, style, tmp_path):
    file, plain, ordered = write(tmp_path, kind)
    found, target = packed(tmp_path, file, plain, style)
    assert found == Packed(kept=14)
    weights, wanted = stored(target), expected(plain, style)
    assert weights.keys() == wanted.keys()
    for name, (weight, values) in weights.items():
        assert weight.bits == bits
        assert np.array_equal(values, wanted[name])
    floats = [tensor for tensor in OnnxModel(target).graph.initializer if len(tensor.dims) == 2]
    assert all(tensor.name.endswith("_scales") for tensor in floats)

    # The engine reads the codes in the same order: what is left is the rounding of activations.
    right = compute(plain, X)
    tolerance = 0.02 * np.abs(right).max()
    run = onnx_models.session(target)
    assert np.abs(run.run(None, {"hidden": X})[0] - right).max() < tolerance
    basis = basis_of(ordered)
    assert bake(target, basis.factors, HEADS).agreement < 1e-4
    v = np.random.default_rng(2).standard_normal(basis.size).astype(np.float32) / 4
    moved = {name: w + back(name, basis.delta(name, v)) for name, w in plain.items()}
    ours = onnx_models.session(target).run(
        None, {"hidden": X, "tinylora_r": onnx_models.row(basis, v)[None]}
    )[0]
    right = compute(moved, X)
    assert np.abs(ours - right).max() < 0.02 * np.abs(right).max()


@pytest.mark.parametrize("kind", [TYPES.Q4_1, TYPES.Q5_0])
def test_other_types_are_rounded_to_8_bits(kind, tmp_path):
    file, plain, _ = write(tmp_path, kind)
    found, target = packed(tmp_path, file, plain)
    assert found == Packed(rounded=14)
    wanted = expected(plain, "single")
    for name, (weight, values) in stored(target).items():
        assert weight.bits == 8
        blocks = np.abs(wanted[name]).reshape(len(values), -1, 32).max(axis=-1)
        off = np.abs(values - wanted[name]).reshape(len(values), -1, 32).max(axis=-1)
        assert (off <= blocks / 254 * (1 + 1e-5)).all()


def test_types_are_mixed(tmp_path):
    """Packed q, k and v are one node, of as many bits as one of them needs; floats stay floats."""
    types = {"attn_q": TYPES.Q4_0, "attn_k": TYPES.Q4_0, "attn_output": TYPES.F16, "ffn_down": TYPES.Q4_1}
    file, plain, _ = write(tmp_path, types)
    found, target = packed(tmp_path, file, plain, "packed")
    assert found == Packed(kept=10, rounded=2, floats=2)
    wanted = expected(plain, "packed")
    for name, (weight, values) in stored(target).items():
        assert isinstance(weight, BlockWeight) == ("o_proj" not in name)
        assert np.array_equal(values, wanted[name]) == ("down_proj" not in name)


def test_the_graph_says_what_a_weight_is(tmp_path):
    """A graph that has other values than the GGUF, or rows in an order that is not known, keeps its own."""
    file, plain, _ = write(tmp_path, TYPES.Q4_0)
    changed = {name: w * np.float32(1.001) if "ffn" in name else w for name, w in plain.items()}
    found, target = packed(tmp_path, file, changed, heads=Heads())
    assert found == Packed(kept=4, rounded=10)  # v and o
    for name, wanted in expected(changed, "single").items():
        assert np.abs(stored(target)[name][1] - wanted).max() <= np.abs(wanted).max() / 254 * (1 + 1e-5)


@pytest.mark.parametrize("source", ["none", "floats"])
def test_weights_that_were_never_quantized(source, tmp_path):
    file, plain, _ = write(tmp_path, TYPES.F16)
    found, target = packed(tmp_path, None if source == "none" else file, plain)
    assert found == Packed(rounded=14)
    assert {weight.bits for weight, _ in stored(target).values()} == {8}


def test_a_gguf_of_another_shape(tmp_path):
    weights = {name: w[:32] if "attn_output" in name else w for name, w in random_weights().items()}
    file, _, _ = write(tmp_path, TYPES.Q8_0, weights)
    with pytest.raises(BaseMismatchError):
        packed(tmp_path, file, random_weights())
