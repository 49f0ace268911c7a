"""A graph with the linear layers of a decoder and nothing else, named as onnxruntime-genai's builder does.

It computes, per block: a = q * [k, v]; h += o(a); h += down(gate * up). No attention, but every weight of a
decoder in its place, so that what is baked into it can be computed with numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinylora_edge import Basis, Factors, Projection

HIDDEN, KV, MIDDLE, BLOCKS = 64, 32, 96, 2
SHAPES = {  # kind -> (out, in), in canonical order
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (KV, HIDDEN),
    "attn_v": (KV, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (MIDDLE, HIDDEN),
    "ffn_up": (MIDDLE, HIDDEN),
    "ffn_down": (HIDDEN, MIDDLE),
}
HF = {
    "attn_q": "attn.q_proj",
    "attn_k": "attn.k_proj",
    "attn_v": "attn.v_proj",
    "attn_qkv": "attn.qkv_proj",
    "attn_output": "attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "gate_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
STYLES = ("single", "packed")


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Module -> weight [out, in], with a strong leading part."""
    rng = np.random.default_rng(seed)
    result = {}
    for block in range(BLOCKS):
        for kind, (n_out, n_in) in SHAPES.items():
            noise = rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)
            strong = rng.standard_normal((n_out, 3)) * [3, 2, 1] @ rng.standard_normal((3, n_in))
            result[f"blk.{block}.{kind}.weight"] = (noise + strong / n_in).astype(np.float32)
    return result


def fused(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same as Phi-3 has them: attn_qkv, and gate and up as ffn_up."""
    result = {}
    for block in range(BLOCKS):
        w = {kind: weights[f"blk.{block}.{kind}.weight"] for kind in SHAPES}
        result[f"blk.{block}.attn_qkv.weight"] = np.concatenate([w["attn_q"], w["attn_k"], w["attn_v"]])
        result[f"blk.{block}.attn_output.weight"] = w["attn_output"]
        result[f"blk.{block}.ffn_up.weight"] = np.concatenate([w["ffn_gate"], w["ffn_up"]])
        result[f"blk.{block}.ffn_down.weight"] = w["ffn_down"]
    return result


def basis_of(weights: dict[str, np.ndarray], *, rank: int = 3, k: int = 2) -> Basis:
    """Factors of weights, factorized in full, and all entries of R on the leading k directions."""
    a, b = [], []
    for weight in weights.values():
        left, s, right = np.linalg.svd(weight.astype(np.float64))
        a.append(right[:rank].astype(np.float32))
        b.append((left[:, :rank] * s[:rank]).astype(np.float32))
    factors = Factors(architecture="llama", modules=tuple(weights), rank=rank, a=tuple(a), b=tuple(b))
    return Basis(factors, Projection.entries(factors.modules, k))


def compute(weights: dict[str, np.ndarray], x: np.ndarray, bias: float = 0.0) -> np.ndarray:
    """What the graph computes, in float64: [batch, sequence, hidden]."""
    h = x.astype(np.float64)
    for block in range(BLOCKS):
        w = {kind: weights[f"blk.{block}.{kind}.weight"].astype(np.float64) for kind in SHAPES}
        q, k, v = (h @ w[kind].T + bias for kind in ("attn_q", "attn_k", "attn_v"))
        h = h + (q * np.concatenate([k, v], -1)) @ w["attn_output"].T
        h = h + ((h @ w["ffn_gate"].T) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
    return h


class Writer:
    """Writes the graph."""

    def __init__(self, weights: dict[str, np.ndarray], style: str, *, bias: float = 0.0) -> None:
        self.weights, self.style, self.bias = weights, style, bias
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def add(self, operation: str, inputs: list[str], output: str, name: str = "", **attributes: Any) -> str:
        name = name or f"/{output}/{operation}"
        self.nodes.append(helper.make_node(operation, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def linear(self, block: int, kind: str, x: str, weight: np.ndarray) -> str:
        place = f"model.layers.{block}.{HF[kind]}.MatMul"
        matrix = self.constant(f"{place}.weight", weight.T)
        return self.add(
            "MatMul",
            [x, matrix],
            f"{place}.out",
            f"/model/layers.{block}/{HF[kind].replace('.', '/')}/MatMul",
        )

    def biased(self, block: int, kind: str, product: str, n_out: int) -> str:
        if not self.bias:
            return product
        name = f"model.layers.{block}.{HF[kind]}.Add.bias"
        vector = self.constant(name, np.full(n_out, self.bias, np.float32))
        node = f"/model/layers.{block}/{HF[kind].replace('.', '/')}/Add"
        return self.add("Add", [product, vector], f"{name}.sum", node)

    def split(self, value: str, names: list[str], sizes: list[int]) -> list[str]:
        sizes_name = self.constant(f"{value}.sizes", np.array(sizes, np.int64))
        node = helper.make_node("Split", [value, sizes_name], names, name=f"/{value}/Split", axis=-1)
        self.nodes.append(node)
        return names

    def block(self, block: int, h: str) -> str:
        w = {kind: self.weights[f"blk.{block}.{kind}.weight"] for kind in SHAPES}
        three = ("attn_q", "attn_k", "attn_v")
        if self.style == "packed":
            packed = np.concatenate([w[kind] for kind in three])
            one = self.linear(block, "attn_qkv", h, packed)
            one = self.biased(block, "attn_qkv", one, len(packed))
            q, k, v = self.split(one, [f"b{block}.{kind}" for kind in three], [HIDDEN, KV, KV])
        else:  # all products first, then all biases
            products = [self.linear(block, kind, h, w[kind]) for kind in three]
            q, k, v = (
                self.biased(block, kind, p, len(w[kind])) for kind, p in zip(three, products, strict=True)
            )
        both = self.add("Concat", [k, v], f"b{block}.kv", axis=-1)
        attention = self.add("Mul", [q, both], f"b{block}.attention")
        o = self.linear(block, "attn_output", attention, w["attn_output"])
        h = self.add("Add", [h, o], f"b{block}.middle")
        if self.style == "packed":
            one = self.linear(block, "gate_up", h, np.concatenate([w["ffn_gate"], w["ffn_up"]]))
            gate, up = self.split(one, [f"b{block}.gate", f"b{block}.up"], [MIDDLE, MIDDLE])
        else:
            gate, up = (self.linear(block, kind, h, w[kind]) for kind in ("ffn_gate", "ffn_up"))
        product = self.add("Mul", [gate, up], f"b{block}.product")
        down = self.linear(block, "ffn_down", product, w["ffn_down"])
        return self.add("Add", [h, down], "logits" if block == BLOCKS - 1 else f"b{block}.end")

    def model(self) -> Any:
        h = "hidden"
        for block in range(BLOCKS):
            h = self.block(block, h)
        shape = ["batch", "sequence", HIDDEN]
        graph = helper.make_graph(
            self.nodes,
            "toy",
            [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        model.ir_version = 10
        return model


def save(model: Any, folder: Path) -> Path:
    """Write a model, its weights beside it, as the builder does."""
    folder.mkdir(exist_ok=True)
    data = {"location": "model.onnx.data", "size_threshold": 256}
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, **data)
    return folder
