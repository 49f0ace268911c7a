"""Packing: the floats of a graph become blocks of 4 or 8 bits, where possible the very blocks of its GGUF.

Weights that were quantized once are not rounded again to 4 bits. Q4_0 and Q8_0 go into the graph bit for
bit: their codes and scales are those of a MatMulNBits node with zero points in the middle. Types with a
minimum or with scales of two levels (Q4_1, Q4_K, Q6_K, ...) have no such node, and are rounded to 8 bits in
blocks of 32, by at most 1/254 of a block's largest weight. Weights that are floats in the GGUF stay floats.

The graph's values decide. Where scales of the GGUF times codes give these values, bit for bit, in one of the
orders that rows may have (`row_orders`), the scales are kept. Elsewhere the values are rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.formats.onnx_graph import DATA_NAME, MODEL_NAME
from tinylora_edge.modules import Heads, inverse, row_orders

from ..weights.dequantize import FLOAT_BYTES
from ..weights.gguf import GGUFWeights
from .graph import BLOCK, HEAD, FloatWeight, ModuleSlice, OnnxModel, linear_nodes, place

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_DOMAIN = "com.microsoft"
_ALIGNMENT = 4096  # bytes that a tensor's place in the file is a multiple of, so that it can be mapped
_VALUES = 1 << 22  # most weights that are in memory as floats at a time
_HEAD, _TABLE = "output.weight", "token_embd.weight"
_BITS = {"Q4_0": 4, "Q8_0": 8}  # of a code, in types whose block is a scale in float16, and codes


@dataclass
class Packed:
    """How many weights of a graph are `kept` as in the GGUF, are `rounded` to 8 bits, and stay `floats`."""

    kept: int = 0
    rounded: int = 0
    floats: int = 0


def pack(graph: Path, target: Path, gguf: Path | None, heads: Heads) -> Packed:
    """Move a float32 graph and what lies beside it into the existing directory `target`, its weights packed.

    Linear layers, head and table of embeddings are packed as in the GGUF that the graph was built from; to 8
    bits where there is none, or it has floats alone. Only some rows are in memory at a time.

    BaseMismatchError: a layer has another shape than in the GGUF.
    """
    model = OnnxModel(graph)
    weights = None if gguf is None else GGUFWeights(gguf)
    with open(target / DATA_NAME, "wb") as file:
        packer = _Packer(model, weights if weights is not None and weights.quantized else None, heads, file)
        packer.run()
    model.save(target)
    for path in graph.iterdir():
        if path.name not in (MODEL_NAME, DATA_NAME):
            path.rename(target / path.name)
    return packer.packed


@dataclass(frozen=True)
class _Blocks:
    """A weight as it was written: bits of a code, the tensor of its blocks, the name of its scales."""

    bits: int
    blocks: TensorProto
    scales: str


class _Packer:
    """The packing of one graph in memory, and of its data into a file."""

    def __init__(self, model: OnnxModel, weights: GGUFWeights | None, heads: Heads, file: BinaryIO) -> None:
        self._model, self._weights, self._heads, self._file = model, weights, heads, file
        self._tensors = {} if weights is None else weights.file.tensors
        self._done: dict[str, _Blocks | None] = {}
        self.packed = Packed()

    def run(self) -> None:
        model, graph = self._model, self._model.graph
        found = linear_nodes(model)
        shapes = {
            name: (self._tensors[name].shape[0], self._tensors[name].shape[1])
            for name in (self._weights.modules if self._weights is not None else ())
            if len(self._tensors[name].shape) == 2
        }
        parts = {site.linear.index: site.parts for site in place(found, shapes)}
        for linear in found:
            own = parts.get(linear.index, [])
            if linear.place[1] == HEAD:
                own = [ModuleSlice(_HEAD if _HEAD in self._tensors else _TABLE, 0, 0, linear.n_out)]
            elif self._weights is None:
                own = [ModuleSlice("", 0, 0, linear.n_out)]
            assert isinstance(linear.weight, FloatWeight)
            self._multiply(graph.node[linear.index], linear.weight, own)
        producers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Gather" and list(node.input[1:]) == ["input_ids"]:
                self._look_up(node, producers.get(node.input[0]))
        self._drop_unread()
        for tensor in graph.initializer:
            if tensor.data_location == tensor.EXTERNAL and tensor.name in model.initializers:
                _refer(tensor, *self._write([model.data(tensor)]))

    def _multiply(self, node: NodeProto, weight: FloatWeight, parts: Sequence[ModuleSlice]) -> None:
        """Make a MatMul one of packed weights."""
        found = self._pack(weight, parts)
        if found is not None:
            n_out, n_in = weight.shape
            sizes = {"K": n_in, "N": n_out, "bits": found.bits, "block_size": BLOCK, "accuracy_level": 4}
            self._become(node, "MatMulNBits", [node.input[0], found.blocks.name, found.scales], sizes)

    def _look_up(self, node: NodeProto, producer: NodeProto | None) -> None:
        """Make the Gather of the embeddings one of packed weights: the head's, where they are tied."""
        turned = producer is not None and producer.op_type == "Transpose"
        tensor = self._model.initializers.get(producer.input[0] if producer and turned else node.input[0])
        if tensor is None:
            return
        weight = FloatWeight(tensor, rowwise=not turned)
        n_out, n_in = weight.shape
        if n_in % BLOCK:
            return
        found = self._pack(weight, [ModuleSlice(_TABLE, 0, 0, n_out)])
        if found is not None:
            rows = deepcopy(found.blocks)
            rows.name, rows.dims[:] = f"{rows.name}_rows", [n_out, n_in * found.bits // 8]  # the same bytes
            self._model.graph.initializer.append(rows)
            sizes = {"bits": found.bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
            self._become(node, "GatherBlockQuantized", [rows.name, node.input[1], found.scales], sizes)

    def _pack(self, weight: FloatWeight, parts: Sequence[ModuleSlice]) -> _Blocks | None:
        """Write a weight's blocks, once; None where it stays as it is."""
        key = weight.tensor.name
        if key not in self._done:
            tensors = (self._tensors.get(part.module) for part in parts)
            floats = any(tensor is not None and tensor.type.name in FLOAT_BYTES for tensor in tensors)
            if floats or sum(part.count for part in parts) != weight.shape[0]:
                self._done[key] = None
                self.packed.floats += max(len(parts), 1)
            else:
                self._done[key] = self._written(weight, parts)
        return self._done[key]

    def _written(self, weight: FloatWeight, parts: Sequence[ModuleSlice]) -> _Blocks:
        from onnx import TensorProto

        found = [self._scales(weight, part) for part in sorted(parts, key=lambda part: part.column)]
        scales, bits = np.concatenate([own for own, _ in found]), max(bits for _, bits in found)
        name, shape = weight.tensor.name, (*scales.shape, BLOCK * bits // 8)
        data = TensorProto(name=f"{name}_Q{bits}", data_type=TensorProto.UINT8, dims=shape)
        codes = (_codes(blocks, scales[n], bits) for n, blocks in self._blocks(weight, 0, weight.shape[0]))
        _refer(data, *self._write(_bytes(each, bits) for each in codes))
        factors = TensorProto(name=f"{name}_scales", data_type=TensorProto.FLOAT, dims=scales.shape)
        _refer(factors, *self._write([scales]))
        self._model.graph.initializer.extend([data, factors])
        return _Blocks(bits, data, factors.name)

    def _scales(self, weight: FloatWeight, part: ModuleSlice) -> tuple[NDArray[np.float32], int]:
        """Return the scales of a part, float32 [count, blocks], and the bits of its codes: the GGUF's, or
        those of rounding to 8 bits."""
        for scales, bits in self._stored(weight, part):
            if all(
                np.array_equal(_codes(blocks, scales[n], bits) * scales[n][..., None], blocks)
                for n, blocks in self._blocks(weight, part.column, part.count)
            ):
                self.packed.kept += 1
                return scales, bits
        self.packed.rounded += 1
        each = self._blocks(weight, part.column, part.count)
        largest = [np.abs(blocks).max(axis=-1) for _, blocks in each]
        return np.divide(np.concatenate(largest), 127, dtype=np.float32), 8  # as ggml does for Q8_0

    def _stored(self, weight: FloatWeight, part: ModuleSlice) -> Iterator[tuple[NDArray[np.float32], int]]:
        """Yield the scales of a part in the GGUF, and the bits of its codes, for each order of rows."""
        tensor = self._tensors.get(part.module)
        if self._weights is None or tensor is None or tensor.type.name not in _BITS:
            return
        n_out, n_in = tensor.shape
        if n_in == weight.shape[1] and n_out >= part.row + part.count:
            blocks = self._weights.file.data(tensor).reshape(n_out, n_in // BLOCK, -1)
            scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
            for order in row_orders(tensor.name.split(".")[-2], n_out, self._heads):
                rows = inverse(order)[part.row : part.row + part.count]
                yield scales[rows], _BITS[tensor.type.name]

    def _blocks(
        self, weight: FloatWeight, first: int, count: int
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield `count` rows of a weight, from `first` on, some at a time: their slice of the `count`, and
        float32 [n, blocks, 32]."""
        n_in = weight.shape[1]
        step = max(1, _VALUES // n_in)
        for start in range(0, count, step):
            stop = min(start + step, count)
            rows = weight.rows(self._model, first + start, first + stop)
            blocks = np.pad(rows, ((0, 0), (0, -n_in % BLOCK))).reshape(len(rows), -1, BLOCK)
            yield slice(start, stop), blocks

    def _drop_unread(self) -> None:
        """Take out the floats that nothing reads any more, and a Transpose that only turned them."""
        graph = self._model.graph
        read = self._read()
        for node in list(graph.node):
            if node.op_type == "Transpose" and node.output[0] not in read:
                graph.node.remove(node)
        read = self._read()
        for tensor in list(graph.initializer):
            if tensor.name not in read:
                graph.initializer.remove(tensor)

    def _read(self) -> set[str]:
        """Return the names of the values that nodes read."""
        return {name for node in self._model.graph.node for name in node.input}

    def _become(self, node: NodeProto, operation: str, inputs: list[str], sizes: dict[str, int]) -> None:
        from onnx import helper

        node.op_type, node.domain = operation, _DOMAIN
        node.input[:] = inputs
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sizes.items())
        if all(item.domain != _DOMAIN for item in self._model.proto.opset_import):
            self._model.proto.opset_import.add(domain=_DOMAIN, version=1)

    def _write(self, chunks: Iterable[NDArray[Any]]) -> tuple[int, int]:
        """Append a tensor's bytes to the file and return (offset, length)."""
        start = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.write(bytes(start - self._file.tell()))
        for chunk in chunks:
            self._file.write(np.ascontiguousarray(chunk).data)
        return start, self._file.tell() - start


def _refer(tensor: TensorProto, offset: int, length: int) -> None:
    """Write into a tensor where its bytes lie."""
    tensor.data_location = tensor.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", DATA_NAME), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _codes(blocks: NDArray[np.float32], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return the whole numbers [n, blocks, 32] which, times scales [n, blocks], are nearest to the values."""
    half = 1 << (bits - 1)
    return np.rint(blocks / np.where(scales, scales, 1)[..., None]).clip(-half, half - 1)


def _bytes(codes: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    """Return codes as a node stores them: uint8, shifted so that 0 is in the middle; of two codes of 4 bits
    the first is in the low bits."""
    found = (codes + (1 << (bits - 1))).astype(np.uint8)
    return found if bits == 8 else found[..., ::2] | found[..., 1::2] << np.uint8(4)
