"""The graph that onnxruntime-genai's builder writes: its files, and which nodes compute the modules.

The builder names a node after its layer, `/model/layers.0/attn/o_proj/MatMul`, and keeps all weights in one
file beside the graph. It packs q, k and v into one node, and splits some of the fused layers that a GGUF has.
So a module may be computed by several nodes, and a node may compute several modules: a `ModuleSlice` is what
one node computes of one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.errors import BaseMismatchError, UnsupportedModelError
from tinylora_edge.factors import Factors
from tinylora_edge.formats.onnx_graph import DATA_NAME, MODEL_NAME
from tinylora_edge.modules import parse
from tinylora_edge.writes import atomic_write

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

BLOCK = 32
"""Weights that share a scale, in every quantized graph of the builder and of `pack`."""

HEAD = "lm_head"
"""The role of the node that gives the logits."""

_MAX_BYTES = 1_900_000_000  # protocol buffers end at 2 GiB
_ROLES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}
_LAYER = re.compile(r"/model/layers\.(\d+)/(?:attn|mlp)/(\w+)/MatMul(?:_Q[48]|NBits)?")
_HEAD = re.compile(r"/lm_head/MatMul(?:_Q[48]|NBits)?")
_NAMED = 4  # most names in an error


class OnnxModel:
    """A graph in memory, and its weights, memory-mapped. `initializers` are those of the file."""

    def __init__(self, folder: Path) -> None:
        import onnx

        self.proto: ModelProto = onnx.load_model(str(folder / MODEL_NAME), load_external_data=False)
        self.graph = self.proto.graph
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in self.graph.initializer}
        self._data = np.memmap(folder / DATA_NAME, np.uint8, "r")

    def data(self, tensor: TensorProto) -> NDArray[np.uint8]:
        """Return the bytes of a tensor: uint8, read-only, memory-mapped where they are external."""
        if tensor.data_location != tensor.EXTERNAL:
            return np.frombuffer(tensor.raw_data, np.uint8)
        place = {entry.key: entry.value for entry in tensor.external_data}
        start = int(place["offset"])
        return self._data[start : start + int(place["length"])]

    def save(self, folder: Path) -> None:
        """Write the graph, atomically."""
        if (size := self.proto.ByteSize()) > _MAX_BYTES:
            raise UnsupportedModelError(
                f"the graph would take {size:,} bytes with the factors in it, more than the 2 GiB that an "
                "ONNX file can hold: choose a smaller rank, or fewer modules with --targets"
            )
        with atomic_write(folder / MODEL_NAME) as file:
            file.write(self.proto.SerializeToString())


@dataclass(frozen=True)
class FloatWeight:
    """A float32 matrix: [K, N] as MatMul takes it; `rowwise`: [N, K], as a table of embeddings is."""

    tensor: TensorProto
    rowwise: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): rows and columns of the weight as torch has it."""
        first, second = (int(dim) for dim in self.tensor.dims)
        return (first, second) if self.rowwise else (second, first)

    def rows(self, model: OnnxModel, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start .. stop-1 of the weight as torch has it: float32 [stop - start, K]."""
        values = model.data(self.tensor).view("<f4").reshape(tuple(self.tensor.dims))
        return np.ascontiguousarray(values[start:stop] if self.rowwise else values[:, start:stop].T)


@dataclass(frozen=True)
class BlockWeight:
    """The weight of a MatMulNBits node: N rows of blocks of 32 codes of 4 or 8 bits, each with a scale.

    Layout: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, "MatMulNBits".
    """

    blocks: TensorProto
    scales: TensorProto
    bits: int
    shape: tuple[int, int]

    def rows(self, model: OnnxModel, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start .. stop-1 of the weight: float32 [stop - start, K]."""
        n_out, n_in = self.shape
        codes = model.data(self.blocks).reshape(n_out, -1)[start:stop]
        if self.bits == 4:  # low bits first
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
        scales = model.data(self.scales).view("<f4").reshape(n_out, -1, 1)[start:stop]
        values = codes.reshape(len(codes), -1, BLOCK).astype(np.float32) - (1 << (self.bits - 1))
        return np.ascontiguousarray((values * scales).reshape(len(codes), -1)[:, :n_in])


@dataclass(frozen=True)
class LinearNode:
    """A node that multiplies with a constant weight, and the constant bias that follows it.

    Attributes:
        index: of the node in the graph.
        last: index of the node after which the result is complete: itself, or the addition of a bias.
        input, output: names of what it is applied to, and of the result, bias included.
        place: (block, role); that of the head is (-1, HEAD).
    """

    name: str
    index: int
    last: int
    input: str
    output: str
    weight: FloatWeight | BlockWeight
    place: tuple[int, str]

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
    """Return the nodes that compute the modules of factors, in the order of the graph.

    Raises:
        UnsupportedModelError: a module has no node.
        BaseMismatchError: a node has another shape than its module.
    """
    found = linear_nodes(model)
    both = zip(factors.modules, factors.a, factors.b, strict=True)
    sites = place(found, {module: (len(b), a.shape[-1]) for module, a, b in both})
    placed = {part.module for site in sites for part in site.parts}
    if missing := [module for module in factors.modules if module not in placed]:
        nodes = ", ".join(linear.name for linear in found[:_NAMED]) or "none"
        raise UnsupportedModelError(
            f"{len(missing)} of {len(factors.modules)} modules have no node in the graph, such as "
            f"{', '.join(missing[:_NAMED])}; its {len(found)} linear layers are {nodes}, ... Leave them "
            "out with --targets"
        )
    return sites


def linear_nodes(model: OnnxModel) -> list[LinearNode]:
    """Return the linear layers of a graph and its head, in order."""
    nodes, found = list(model.graph.node), []
    readers: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(nodes):
        for name in node.input:
            readers[name].append(index)
    for index, node in enumerate(nodes):
        layer = _LAYER.fullmatch(node.name)
        if layer is not None and layer[2] in _ROLES:
            where = int(layer[1]), _ROLES[layer[2]]
        elif _HEAD.fullmatch(node.name):
            where = -1, HEAD
        else:
            continue
        last, output = index, node.output[0]
        # The result includes the bias, because engines fuse it with the product: a node between them would
        # change last bits of the base.
        after = nodes[readers[output][0]] if len(readers[output]) == 1 else node
        if after.op_type == "Add" and after.name == f"{node.name.rpartition('/')[0]}/Add":
            last, output = readers[output][0], after.output[0]
        found.append(LinearNode(node.name, index, last, node.input[0], output, _weight(model, node), where))
    return found


def _weight(model: OnnxModel, node: NodeProto) -> FloatWeight | BlockWeight:
    tensors = [model.initializers.get(name) for name in node.input[1:] if name]
    sizes = {item.name: item.i for item in node.attribute}
    if node.op_type == "MatMul" and tensors[0] is not None and tensors[0].data_type == tensors[0].FLOAT:
        return FloatWeight(tensors[0])
    if node.op_type != "MatMulNBits" or None in tensors or len(tensors) != 2 or sizes["block_size"] != BLOCK:
        raise UnsupportedModelError(
            f"node {node.name} of a layer is a {node.op_type} with {len(tensors)} tensors: MatMul in float32 "
            f"and MatMulNBits in symmetric blocks of {BLOCK} can be baked"
        )
    blocks, scales = (tensor for tensor in tensors if tensor is not None)
    return BlockWeight(blocks, scales, sizes.get("bits", 4), (sizes["N"], sizes["K"]))


def place(found: list[LinearNode], shapes: Mapping[str, tuple[int, int]]) -> list[Site]:
    """Return which of the nodes compute modules of these shapes (out, in), in the order of the graph.

    Modules that none computes are in none of the sites. BaseMismatchError: a node has another shape.
    """
    blocks: dict[int, dict[str, LinearNode]] = defaultdict(dict)
    for linear in found:
        block, role = linear.place
        blocks[block][role] = linear
    sites: dict[int, Site] = {}
    for module, (n_out, n_in) in shapes.items():
        block, kind = parse(module)
        for linear, part in _parts(module, kind, n_out, blocks[block]):
            if linear.weight.shape[1] != n_in or part.column < 0 or part.column + part.count > linear.n_out:
                raise BaseMismatchError(
                    f"{module} is {n_out} x {n_in}, but node {linear.name} takes K = "
                    f"{linear.weight.shape[1]} to N = {linear.n_out}: the graph is of another model"
                )
            sites.setdefault(linear.index, Site(linear)).parts.append(part)
    return [sites[index] for index in sorted(sites)]


def _parts(
    module: str, kind: str, n_out: int, roles: dict[str, LinearNode]
) -> Iterator[tuple[LinearNode, ModuleSlice]]:
    """Yield the nodes of a block that compute a module of `n_out` rows, and what each computes of it. Where
    their sizes cannot be the module's, a column is negative."""
    several = [roles[kind]] if kind in roles else []
    packed = roles.get("attn_qkv")
    if kind == "ffn_up" and several and "ffn_gate" in roles and several[0].n_out < n_out:
        several = [roles["ffn_gate"], *several]  # Phi-3's ffn_up is gate and up in one
    elif kind == "attn_qkv" and not several:
        several = [roles[role] for role in ("attn_q", "attn_k", "attn_v") if role in roles]
    elif not several and packed is not None and kind in ("attn_q", "attn_k", "attn_v"):
        column = {"attn_q": 0, "attn_k": packed.n_out - 2 * n_out, "attn_v": packed.n_out - n_out}[kind]
        yield packed, ModuleSlice(module, 0, column, n_out)
    row, column = 0, 0 if sum(linear.n_out for linear in several) == n_out else -1
    for linear in several:
        yield linear, ModuleSlice(module, row, column, linear.n_out)
        row += linear.n_out
