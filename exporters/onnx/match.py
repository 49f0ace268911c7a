"""The linear layers of an ONNX graph: their weights as it stores them, and the modules that they compute.

onnxruntime-genai's builder packs q, k and v into one node and quantizes to MatMulNBits; optimum and torch
write one node a layer; Phi-3 has fused modules that a builder splits again. So a module may be computed by
several nodes, and a node may compute several modules: a `ModuleSlice` is what one node computes of one.
"""

from __future__ import annotations

import ast
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...errors import BaseMismatchError, ExportError, UnsupportedModelError
from ...factors import Factors
from ...modules import parse
from ..weights.dequantize import RowDecoder, float_decoder
from .model import OnnxModel, attribute, inner_graphs, nbytes

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

GATE_UP = "gate_up"
_ROLES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "query_key_value": "attn_qkv",
    "Wqkv": "attn_qkv",
    "o_proj": "attn_output",
    "out_proj": "attn_output",
    "dense": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "gate_up_proj": GATE_UP,
    "fc1": "ffn_up",
    "fc2": "ffn_down",
    "dense_h_to_4h": "ffn_up",
    "dense_4h_to_h": "ffn_down",
    **{kind: kind for kind in ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output")},
    **{kind: kind for kind in ("ffn_gate", "ffn_up", "ffn_down")},
}
_BLOCK = re.compile(r"(?:^|[./_])(?:layers|blocks|blk|h)[./_](\d+)[./](\S+)")
_NOT_A_LAYER = ("lora_", "expert", "router")
_SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter says which layer a node came from
_NOT_BAKED = ("MatMul with", "Gemm", "QMoE", "MoE", "DynamicQuantizeMatMul", "MatMulInteger")
_SHOWN = 4


@dataclass(frozen=True)
class FloatWeight:
    """A float matrix: [K, N] as MatMul takes it, or [N, K], as torch has it, which the graph transposes."""

    tensor: TensorProto
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): rows and columns of the weight as torch has it."""
        first, second = (int(dim) for dim in self.tensor.dims)
        return (first, second) if self.transposed else (second, first)

    @property
    def tensors(self) -> tuple[TensorProto, ...]:
        """What a fingerprint covers; the last is of the type in which the node computes."""
        return (self.tensor,)

    def rows(self, model: OnnxModel, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start .. stop-1 of the weight as torch has it: float32 [stop - start, K]."""
        n_out, n_in = self.shape
        if self.transposed:
            return _floats(model, self.tensor, n_out, start, stop)
        data = model.data(self.tensor).reshape(n_in, n_out, -1)
        raw = np.array(data[:, start:stop]).reshape(n_in, -1)
        return np.ascontiguousarray(_decoder(self.tensor)(raw).T, np.float32)


@dataclass(frozen=True)
class BlockWeight:
    """The weight of a MatMulNBits node: N rows of blocks of 4 or 8 bits with a scale, and a zero point.

    Layout: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, "MatMulNBits".
    """

    blocks: TensorProto
    scales: TensorProto
    zeros: TensorProto | None
    bits: int
    block: int
    shape: tuple[int, int]

    @property
    def tensors(self) -> tuple[TensorProto, ...]:
        """What a fingerprint covers."""
        return (self.blocks, self.scales)

    def rows(self, model: OnnxModel, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start .. stop-1 of the weight: float32 [stop - start, K]."""
        n_out, n_in = self.shape
        count = -(-n_in // self.block)

        def codes(tensor: TensorProto) -> NDArray[np.float32]:
            raw = np.array(model.data(tensor).reshape(n_out, -1)[start:stop])
            return _unpack(raw, self.bits).astype(np.float32)

        scales = _floats(model, self.scales, n_out, start, stop)
        if self.zeros is None:
            zeros: NDArray[np.float32] = np.full_like(scales, 1 << (self.bits - 1))
        elif self.zeros.data_type == self.zeros.UINT8:
            zeros = codes(self.zeros)[:, :count]
        else:
            zeros = _floats(model, self.zeros, n_out, start, stop)
        values = codes(self.blocks).reshape(stop - start, count, self.block)
        values = (values - zeros[..., None]) * scales[..., None]
        return np.ascontiguousarray(values.reshape(stop - start, -1)[:, :n_in])


Weight = FloatWeight | BlockWeight


def block_weight(model: OnnxModel, node: NodeProto) -> BlockWeight:
    """Return the weight of a MatMulNBits node."""
    n_in, n_out = (int(attribute(node, key, 0)) for key in ("K", "N"))
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size", 0))
    tensors = [model.initializers.get(name) if name else None for name in node.input[1:5]]
    blocks, scales, zeros, order = (*tensors, None, None, None, None)[:4]
    packed = attribute(node, "weight_prepacked", 0)
    if blocks is None or scales is None or bits not in (4, 8) or block < 16 or order is not None or packed:
        raise UnsupportedModelError(
            f"{node.name} is a MatMulNBits of {bits} bits in blocks of {block}: 4 and 8 bits with constant "
            "weights can be baked, neither reordered (g_idx) nor packed for one kind of GPU"
        )
    count = -(-n_in // block)
    sizes = [
        (blocks, nbytes(blocks), n_out * count * block * bits // 8),
        (scales, math.prod(scales.dims), n_out * count),
    ]
    if zeros is not None:
        whole = -(-count * bits // 8) if zeros.data_type == zeros.UINT8 else count
        sizes.append((zeros, math.prod(zeros.dims), n_out * whole))
    for tensor, found, expected in sizes:
        if found != expected:
            raise ExportError(
                f"{model.path} is damaged: {node.name} has K = {n_in}, N = {n_out} and blocks of {block}: "
                f"{tensor.name} has {found:,} entries, not {expected:,}. Download or build the model again"
            )
    return BlockWeight(blocks, scales, zeros, bits, block, (n_out, n_in))


def _floats(model: OnnxModel, tensor: TensorProto, n_out: int, start: int, stop: int) -> NDArray[np.float32]:
    """Rows start .. stop-1 of a float tensor of `n_out` rows: float32 [stop - start, entries of a row]."""
    raw = np.array(model.data(tensor).reshape(n_out, -1)[start:stop])
    return np.array(_decoder(tensor)(raw), np.float32)


def _decoder(tensor: TensorProto) -> RowDecoder:
    kind = tensor.DataType.Name(tensor.data_type)
    decode = float_decoder({"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}.get(kind, kind))
    if decode is None:
        raise UnsupportedModelError(f"{tensor.name} is stored as {kind}: expected floats of 16 or 32 bits")
    return decode


def _unpack(raw: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes of packed bytes, low bits first: uint8 [n, bytes] -> [n, codes]."""
    if bits == 8:
        return raw
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)


@dataclass(frozen=True)
class LinearNode:
    """A node that multiplies with a constant weight, and the constant bias that follows it.

    Attributes:
        index: of the node in the graph.
        last: index of the node after which the result is complete: itself, or the addition of a bias.
        input, output: names of what it is applied to, and of the result, bias included.
        dtype: ONNX element type of both.
        place: (block, role) as its name tells, or None.
    """

    name: str
    index: int
    last: int
    input: str
    output: str
    weight: Weight
    dtype: int
    place: tuple[int, str] | None

    @property
    def n_out(self) -> int:
        """N: columns of the result."""
        return self.weight.shape[0]


@dataclass(frozen=True)
class ModuleSlice:
    """The `count` rows of a module, from `row` on, that one node computes, from `column` of its result on."""

    module: str
    row: int
    column: int
    count: int


@dataclass
class Site:
    """A node and what it computes of the modules."""

    linear: LinearNode
    parts: list[ModuleSlice] = field(default_factory=list)


def match(model: OnnxModel, factors: Factors) -> list[Site]:
    """Return the nodes that compute the modules of factors, in the order of the graph."""
    found = linear_nodes(model)
    shapes = {}
    for module, a, b in zip(factors.modules, factors.a, factors.b, strict=True):
        if a.ndim == 3:
            raise UnsupportedModelError(
                f"{module} holds experts, which ONNX graphs compute in one node that cannot be extended: "
                "leave them out with --targets"
            )
        shapes[module] = (len(b), a.shape[-1])
    sites = place(model, found, shapes)
    placed = {part.module for site in sites for part in site.parts}
    if missing := [module for module in factors.modules if module not in placed]:
        nodes = ", ".join(linear.name for linear in found[:_SHOWN]) or "none"
        raise UnsupportedModelError(
            f"{len(missing)} of {len(factors.modules)} modules have no node in {model.path}, such as "
            f"{', '.join(missing[:_SHOWN])}. Its {len(found)} nodes with a constant weight are {nodes}, ... "
            "Name the nodes after their layers, as onnxruntime-genai's builder, optimum and torch do, or "
            "leave the modules out with --targets"
        )
    return sites


def linear_nodes(model: OnnxModel) -> list[LinearNode]:
    """Return every node that multiplies a three-dimensional input with a constant matrix, in order."""
    return list(_LinearFinder(model).read())


def place(model: OnnxModel, found: list[LinearNode], shapes: Mapping[str, tuple[int, int]]) -> list[Site]:
    """Return which of the nodes that were found compute modules of these shapes (out, in), in order.

    Modules that none computes are in none of the sites.
    """
    blocks: dict[int, dict[str, LinearNode]] = defaultdict(dict)
    for linear in found:
        if linear.place is not None:
            block, role = linear.place
            other = blocks[block].setdefault(role, linear)
            if other is not linear:
                raise UnsupportedModelError(
                    f"two nodes look like {role} of block {block} ({other.name}, {linear.name}): the graph "
                    "cannot be matched. Has it adapters already?"
                )
    sites: dict[int, Site] = {}
    for module, (n_out, n_in) in shapes.items():
        block, kind = parse(module)
        for linear, part in _parts(module, kind, n_out, blocks[block]):
            if linear.weight.shape[1] != n_in or part.column < 0 or part.column + part.count > linear.n_out:
                raise BaseMismatchError(
                    f"{module} has factors for {n_in} x {n_out}, but node {linear.name} takes K = "
                    f"{linear.weight.shape[1]} to N = {linear.n_out}: {model.path} is another model than the "
                    "factors were made of"
                )
            sites.setdefault(linear.index, Site(linear)).parts.append(part)
    return [sites[index] for index in sorted(sites)]


class _LinearFinder:
    """A search for the linear layers of one graph."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._nodes = list(model.graph.node)
        self._producers = {name: node for node in self._nodes for name in node.output}
        self._readers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self._nodes):
            for name in {*node.input, *captured(node)}:
                self._readers[name].append(index)
        self._results = {value.name for value in model.graph.output}
        self._ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
            if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape")
        }

    def read(self) -> Iterator[LinearNode]:
        """Yield every node that multiplies a three-dimensional input with a constant matrix."""
        for index, node in enumerate(self._nodes):
            place = self._place(node)
            weight = self._weight(node, place)
            if weight is None:
                continue
            source = node.input[0]
            rank = self._ranks.get(source, self._ranks.get(node.output[0], 3))
            if rank != 3:
                if place is not None:
                    raise UnsupportedModelError(
                        f"node {node.name} multiplies an input of {rank} dimensions: expected [batch, "
                        "sequence, features], in which every row of a batch can have a vector of its own"
                    )
                continue
            last, output = self._end(index, weight.shape[0])
            dtype = weight.tensors[-1].data_type
            yield LinearNode(node.name or output, index, last, source, output, weight, dtype, place)

    def _weight(self, node: NodeProto, place: tuple[int, str] | None) -> Weight | None:
        operation = node.op_type
        if operation == "MatMulNBits" and node.domain == "com.microsoft":
            return block_weight(self._model, node) if place is not None else None
        if operation == "MatMul" and node.domain in ("", "ai.onnx"):
            found = self._constant(node.input[1])
            if found is not None:
                return FloatWeight(*found)
            producer = self._producers.get(node.input[1])
            if producer is not None and producer.op_type == "DequantizeLinear":
                operation = "MatMul with the output of a DequantizeLinear"
        if place is not None and operation.startswith(_NOT_BAKED):
            raise UnsupportedModelError(
                f"node {node.name} of a layer is a {operation}: MatMul with constant floats and MatMulNBits "
                "(QOperator format) can be baked"
            )
        return None

    def _constant(self, name: str) -> tuple[TensorProto, bool] | None:
        tensor, transposed = self._model.initializers.get(name), False
        if tensor is None:
            node = self._producers.get(name)
            if node is None or node.op_type not in ("Transpose", "Constant"):
                return None
            if node.op_type == "Constant":
                tensor = attribute(node, "value")
            elif list(attribute(node, "perm", [1, 0])) == [1, 0]:
                tensor, transposed = self._model.initializers.get(node.input[0]), True
        floats = tensor is not None and tensor.data_type in (tensor.FLOAT, tensor.FLOAT16, tensor.BFLOAT16)
        return (tensor, transposed) if tensor is not None and floats and len(tensor.dims) == 2 else None

    def _end(self, index: int, n_out: int) -> tuple[int, str]:
        """Where the result is complete. The bias goes first, because engines fuse it with the product:
        what came between them would change the last bit of the base."""
        output = self._nodes[index].output[0]
        readers = self._readers[output]
        if len(readers) == 1 and output not in self._results:
            node = self._nodes[readers[0]]
            if node.op_type == "Add" and node.domain in ("", "ai.onnx") and output in node.input:
                other = node.input[1] if node.input[0] == output else node.input[0]
                tensor = self._model.initializers.get(other)
                if tensor is not None and list(tensor.dims) in ([n_out], [1, n_out], [1, 1, n_out]):
                    return readers[0], node.output[0]
        return index, output

    def _place(self, node: NodeProto) -> tuple[int, str] | None:
        hints = [node.name]
        for item in getattr(node, "metadata_props", ()):
            if item.key == _SCOPES:
                with suppress(ValueError, SyntaxError):
                    hints += reversed(ast.literal_eval(item.value))
        if len(node.input) > 1:
            producer = self._producers.get(node.input[1])
            hints += [node.input[1], *(producer.input[:1] if producer is not None else ())]
        for hint in hints:
            found = _BLOCK.search(hint)
            if found is None or any(word in found[2] for word in _NOT_A_LAYER):
                continue
            for token in reversed(re.split(r"[./]", found[2])):
                if token in _ROLES:
                    return int(found[1]), _ROLES[token]
        return None


def _parts(
    module: str, kind: str, n_out: int, roles: dict[str, LinearNode]
) -> list[tuple[LinearNode, ModuleSlice]]:
    """Which nodes of a block compute a module of `n_out` rows; a negative column says that it cannot be."""
    own = roles.get(kind)
    if kind == "ffn_up" and own is None and GATE_UP in roles and roles[GATE_UP].n_out == n_out:
        own = roles[GATE_UP]  # Phi-3's ffn_up is gate and up in one
    gate = roles.get("ffn_gate")
    if kind == "ffn_up" and own is not None and gate is not None and own.n_out + gate.n_out == n_out:
        return _consecutive(module, n_out, [gate, own])
    if own is not None:
        return _consecutive(module, n_out, [own])
    if kind in ("attn_q", "attn_k", "attn_v") and "attn_qkv" in roles:
        packed = roles["attn_qkv"]
        column = {"attn_q": 0, "attn_k": packed.n_out - 2 * n_out, "attn_v": packed.n_out - n_out}[kind]
        return [(packed, ModuleSlice(module, 0, column, n_out))]
    if kind in ("ffn_gate", "ffn_up") and GATE_UP in roles:
        column = 0 if kind == "ffn_gate" else roles[GATE_UP].n_out - n_out
        return [(roles[GATE_UP], ModuleSlice(module, 0, column, n_out))]
    three = [roles.get(role) for role in ("attn_q", "attn_k", "attn_v")]
    if kind == "attn_qkv" and all(three):
        return _consecutive(module, n_out, [linear for linear in three if linear is not None])
    return []


def _consecutive(module: str, n_out: int, several: list[LinearNode]) -> list[tuple[LinearNode, ModuleSlice]]:
    """The rows of a module, one node after the other; column -1 where they are not as many."""
    column = 0 if sum(linear.n_out for linear in several) == n_out else -1
    parts, row = [], 0
    for linear in several:
        parts.append((linear, ModuleSlice(module, row, column, linear.n_out)))
        row += linear.n_out
    return parts


def captured(node: NodeProto) -> Iterator[str]:
    """Yield the names that graphs inside a node take from around it, and some of their own."""
    for item in node.attribute:
        for graph in inner_graphs(item):
            for one in graph.node:
                yield from one.input
                yield from captured(one)
            yield from (value.name for value in graph.output)
