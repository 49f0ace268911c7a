"""Rows of a linear layer's weight as an ONNX graph stores it: float matrices, and MatMulNBits' blocks."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...basis import packed_text
from ...errors import ExportError, UnsupportedModelError
from ...formats.onnx_graph import EDGE_BYTES, FINGERPRINT_MARK
from ..weights.dequantize import RowDecoder, float_decoder
from .model import OnnxModel, attribute, import_onnx, nbytes

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto


@dataclass(frozen=True)
class FloatWeight:
    """A float matrix, [K, N] as MatMul takes it, or [N, K] where the graph transposes it.

    Attributes:
        tensor: the initializer.
        transposed: it is [N, K], rows of which are those of torch's weight.
    """

    tensor: TensorProto
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): rows and columns of the weight as torch has it."""
        first, second = (int(dim) for dim in self.tensor.dims)
        return (first, second) if self.transposed else (second, first)

    def rows(self, model: OnnxModel, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start .. stop-1 of the weight as torch has it: float32 [stop - start, K]."""
        decode = _decoder(self.tensor)
        n_out, n_in = self.shape
        with model.data(self.tensor) as data:
            if self.transposed:
                raw = data.reshape(n_out, -1)[start:stop].copy()
                return np.array(decode(raw), np.float32)
            width = data.size // (n_in * n_out)
            raw = data.reshape(n_in, n_out * width)[:, start * width : stop * width].copy()
        return np.ascontiguousarray(decode(raw).T, np.float32)

    def mark(self) -> tuple[TensorProto, ...]:
        """What a fingerprint covers."""
        return (self.tensor,)


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

    def rows(self, model: OnnxModel, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start .. stop-1 of the weight: float32 [stop - start, K]."""
        n_out, n_in = self.shape
        count = -(-n_in // self.block)
        with model.data(self.blocks) as data:
            raw = data.reshape(n_out, -1)[start:stop].copy()
        codes = _unpack(raw, self.bits).reshape(stop - start, count, self.block).astype(np.float32)
        scales = self._floats(model, self.scales, start, stop)
        if self.zeros is None:
            zeros: NDArray[np.float32] = np.full_like(scales, 1 << (self.bits - 1))
        elif self.zeros.data_type == import_onnx().TensorProto.UINT8:
            with model.data(self.zeros) as data:
                packed = _unpack(data.reshape(n_out, -1)[start:stop].copy(), self.bits)
            zeros = packed[:, :count].astype(np.float32)
        else:
            zeros = self._floats(model, self.zeros, start, stop)
        values = (codes - zeros[..., None]) * scales[..., None]
        return np.ascontiguousarray(values.reshape(stop - start, -1)[:, :n_in])

    def _floats(self, model: OnnxModel, tensor: TensorProto, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of the scales, or of zero points that are floats: float32 [stop - start, blocks]."""
        decode = _decoder(tensor)
        with model.data(tensor) as data:
            return np.array(decode(data.reshape(self.shape[0], -1)[start:stop].copy()), np.float32)

    def mark(self) -> tuple[TensorProto, ...]:
        """What a fingerprint covers."""
        return (self.blocks, self.scales)


Weight = FloatWeight | BlockWeight


def block_weight(model: OnnxModel, node: NodeProto) -> BlockWeight:
    """Return the weight of a MatMulNBits node.

    Raises:
        ExportError: a tensor has another size than the node says.
        UnsupportedModelError: it is of a layout that is not read here.
    """
    n_in, n_out = (int(attribute(node, key, 0)) for key in ("K", "N"))
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size", 0))
    tensors = [model.initializers.get(name) if name else None for name in node.input[1:5]]
    blocks, scales, zeros, order = (*tensors, None, None, None, None)[:4]
    if blocks is None or scales is None or bits not in (4, 8) or block < 16 or order is not None:
        raise UnsupportedModelError(
            f"{node.name} is a MatMulNBits of {bits} bits in blocks of {block}"
            + (" whose columns are reordered (g_idx)" if order is not None else "")
            + ": 4 and 8 bits with constant weights can be baked"
        )
    if attribute(node, "weight_prepacked", 0):
        raise UnsupportedModelError(
            f"{node.name} holds weights packed for one kind of GPU, which cannot be checked against the "
            "factors: build the model without prepacked weights"
        )
    count = -(-n_in // block)
    sizes = [
        (blocks, nbytes(blocks), n_out * count * block * bits // 8),
        (scales, math.prod(scales.dims), n_out * count),
    ]
    if zeros is not None:
        packed = zeros.data_type == import_onnx().TensorProto.UINT8
        sizes.append((zeros, math.prod(zeros.dims), n_out * (-(-count * bits // 8) if packed else count)))
    for tensor, found, expected in sizes:
        if found != expected:
            raise ExportError(
                f"{model.path} is damaged: {node.name} has K = {n_in}, N = {n_out} and blocks of {block}: "
                f"{tensor.name} has {found:,} entries, not {expected:,}. Download or build the model again"
            )
    return BlockWeight(blocks, scales, zeros, bits, block, (n_out, n_in))


def fingerprint(model: OnnxModel, architecture: str, parts: list[tuple[str, list[Weight]]]) -> str:
    """Return the fingerprint of an ONNX base: SHA-256 in hexadecimal.

    Over the architecture and, for each module in order, its name and, for each node that computes it, K,
    N, and of each tensor of its weight the type and the first and last 4,096 bytes.

    Args:
        model: the graph.
        architecture: of the basis.
        parts: module -> weights of its nodes, in order.
    """
    total = hashlib.sha256(FINGERPRINT_MARK + packed_text(architecture))
    for module, weights in parts:
        total.update(packed_text(module) + struct.pack("<I", len(weights)))
        for weight in weights:
            n_out, n_in = weight.shape
            total.update(struct.pack("<QQ", n_in, n_out))
            for tensor in weight.mark():
                total.update(struct.pack("<I", tensor.data_type))
                with model.data(tensor) as data:
                    total.update(data[:EDGE_BYTES].tobytes())
                    total.update(data[-EDGE_BYTES:].tobytes())
    return total.hexdigest()


def _decoder(tensor: TensorProto) -> RowDecoder:
    kind = import_onnx().TensorProto.DataType.Name(tensor.data_type)
    decode = float_decoder({"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}.get(kind, kind))
    if decode is None:
        raise UnsupportedModelError(f"{tensor.name} is stored as {kind}: expected floats of 16 or 32 bits")
    return decode


def _unpack(raw: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes of packed bytes, low bits first: uint8 [n, bytes] -> [n, codes]."""
    if bits == 8:
        return raw
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)
