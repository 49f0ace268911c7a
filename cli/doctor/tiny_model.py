"""Tiny models, written in milliseconds: a Llama of one block as GGUF, a product of matrices as ONNX."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from ...basis import Basis
from ...formats.gguf import GGUFFile
from ...formats.side_tensors import fingerprint, save_basis

_WIDTH, _INNER, _HEADS = 32, 64, 2
_FLOAT, _BYTES = 1, 2  # ONNX's number of float32; protobuf's number of bytes with a length


def write_gguf(path: Path) -> None:
    """Write a Llama of one block with random weights and a vocabulary of bytes: 120 KB.

    Raises:
        OSError: it cannot be written.
    """
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    tokens = [f"<{number:02x}>" for number in range(256)]
    for number in range(33, 127):
        tokens[number] = chr(number)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, "<bos>", "<eos>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["a b"])  # llama.cpp wants the key; the pair has no token
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    shapes = {"token_embd": (258, _WIDTH), "output": (258, _WIDTH)}
    shapes |= {f"blk.0.attn_{kind}": (_WIDTH, _WIDTH) for kind in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (_INNER, _WIDTH), "blk.0.ffn_up": (_INNER, _WIDTH)}
    shapes |= {"blk.0.ffn_down": (_WIDTH, _INNER)}
    for name, shape in shapes.items():
        weight = rng.standard_normal(shape) / np.sqrt(shape[1])
        writer.add_tensor(f"{name}.weight", weight.astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(_WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_basis(model: Path, path: Path) -> Basis:
    """Write a basis of a tiny model, of random factors: no exporter is needed for it.

    Args:
        model: that `write_gguf` wrote.
        path: of the basis.

    Raises:
        OSError: it cannot be written.
    """
    rng = np.random.default_rng(1)
    modules = tuple(f"blk.0.attn_{kind}.weight" for kind in ("q", "k", "v", "output"))
    basis = Basis(
        architecture="llama",
        modules=modules,
        rank=2,
        u=1,
        groups=1,
        seed=0,
        factorization="sqrt",
        scheme="full",
        tying=np.zeros(len(modules), np.int32),
        a=tuple(rng.standard_normal((2, _WIDTH)).astype(np.float32) for _ in modules),
        b=tuple(rng.standard_normal((_WIDTH, 2)).astype(np.float32) for _ in modules),
        base_fingerprints=(fingerprint(GGUFFile(model), modules),),
    )
    save_basis(basis, path)
    return basis


def onnx_product(weight: np.ndarray) -> bytes:
    """Return an ONNX model with one node: y [1, columns] = x [1, rows] times a weight.

    Source: the field numbers of onnx.proto.

    Args:
        weight: float32 [rows, columns].
    """
    rows, columns = weight.shape
    node = _text(1, "x") + _text(1, "w") + _text(2, "y") + _text(4, "MatMul")
    tensor = _number(1, rows) + _number(1, columns) + _number(2, _FLOAT) + _text(8, "w")
    tensor += _block(9, weight.astype("<f4").tobytes())
    graph = _block(1, node) + _text(2, "product") + _block(5, tensor)
    graph += _block(11, _value("x", rows)) + _block(12, _value("y", columns))
    return _number(1, 8) + _block(8, _number(2, 17)) + _block(7, graph)


def _value(name: str, size: int) -> bytes:
    shape = b"".join(_block(1, _number(1, side)) for side in (1, size))
    tensor = _number(1, _FLOAT) + _block(2, shape)
    return _text(1, name) + _block(2, _block(1, tensor))


def _text(field: int, text: str) -> bytes:
    return _block(field, text.encode())


def _block(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
