"""What cannot be matched to the builder's graph is refused by name, and the graph left as it was.

That modules are found, in nodes of their own and in packed ones, with and without a bias: test_onnx_bake.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnx_models
import pytest

from tinylora_edge import BaseMismatchError, UnsupportedModelError, load_bundle
from tinylora_edge.exporters.onnx.bake import bake
from tinylora_edge.exporters.weights.hf import HFConfig


def unnamed(node):
    node.name = node.name.replace("/model/layers", "/layers")


def gemm(node):
    node.op_type = "Gemm" if "o_proj" in node.name else node.op_type


def zero_points(node):
    if node.op_type == "MatMulNBits" and "o_proj" in node.name:
        node.input.append(node.input[2])


def narrow(module, array):
    return array[..., :48] if "attn_output" in module else array


CHANGES = {
    "layers without names": ("fp32", unnamed, {}, r"14 of 14 modules have no node .*blk\.0\.attn_q"),
    "a Gemm": ("fp32", gemm, {}, "o_proj.* is a Gemm"),
    "zero points": ("int4", zero_points, {}, "MatMulNBits with 3 tensors.* symmetric"),
    "other factors": ("fp32", None, {"b": lambda _, b: b[::-1]}, r"blk\.0\.attn_q\.weight is .* away from"),
    "a narrower input": ("fp32", None, {"a": narrow}, r"is 64 x 48.* K = 64"),
}


@pytest.mark.parametrize(("precision", "change", "arrays", "message"), CHANGES.values(), ids=CHANGES)
def test_refusals(precision, change, arrays, message, tiny_bundle, tmp_path):
    factors = load_bundle(tiny_bundle).factors
    hf = onnx_models.tiny_hf("llama")
    folder = shutil.copytree(onnx_models.graph(hf, precision), tmp_path / "graph")
    if change is not None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for node in model.graph.node:
            change(node)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
    for field, alter in arrays.items():
        own = zip(factors.modules, getattr(factors, field), strict=True)
        factors = replace(factors, **{field: tuple(np.ascontiguousarray(alter(*each)) for each in own)})
    before = onnx_models.digests(folder)
    with pytest.raises((BaseMismatchError, UnsupportedModelError), match=message):
        bake(folder, factors, HFConfig(hf).heads)
    assert onnx_models.digests(folder) == before
