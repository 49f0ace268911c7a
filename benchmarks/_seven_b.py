"""A checkpoint with Qwen2.5-7B's linear layers, random: bfloat16 safetensors, and a GGUF as Q4_K_M has it.

A weight is noise plus spikes that fall off slowly, like those of trained layers: neighbouring singular values
lie 1 to 25 % apart. Two blocks are drawn, and all others repeat them by turns: drawing 6.5 billion numbers
takes longer than all else. Embedding and head are left out; an export does not read them.
"""

from __future__ import annotations

import ctypes
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

DRAWN, SPIKES = 2, 32
BLOCKS_A_SHARD = 7
_HF = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FINER = ("attn_v", "ffn_down")  # Q6_K in every other block


@dataclass(frozen=True)
class Shape:
    """Qwen2.5-7B's sizes, or smaller ones."""

    blocks: int = 28
    hidden: int = 3584
    middle: int = 18944
    keys: int = 512

    @classmethod
    def scaled(cls, blocks: int, scale: float) -> Shape:
        """Every width times `scale`, in whole quantization blocks of 256."""
        hidden, middle, keys = (max(256, round(n * scale / 256) * 256) for n in (3584, 18944, 512))
        return cls(blocks, hidden, middle, keys)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Kind -> (out, in)."""
        h, m, k = self.hidden, self.middle, self.keys
        return {
            "attn_q": (h, h),
            "attn_k": (k, h),
            "attn_v": (k, h),
            "attn_output": (h, h),
            "ffn_gate": (m, h),
            "ffn_up": (m, h),
            "ffn_down": (h, m),
        }

    @property
    def weights(self) -> int:
        """Numbers in all linear layers."""
        return self.blocks * sum(n_out * n_in for n_out, n_in in self.linears.values())

    @property
    def nbytes(self) -> int:
        """Bytes of both files together, about."""
        return int(self.weights * (2 + 0.62))


def draw(shape: tuple[int, int], seed: int) -> NDArray[np.float32]:
    """A weight [out, in]: noise, and spikes from 2 to 5 times what noise alone would have."""
    rng = np.random.default_rng(seed)
    n_out, n_in = shape
    weight = rng.standard_normal(shape, dtype=np.float32)
    edge = np.sqrt(n_out) + np.sqrt(n_in)
    strength = edge * rng.uniform(2, 5) * np.arange(1, SPIKES + 1) ** -rng.uniform(0.02, 0.55)
    left, right = (np.linalg.qr(rng.standard_normal((n, SPIKES)))[0].astype(np.float32) for n in shape)
    weight += (left * strength.astype(np.float32)) @ right.T
    weight *= np.float32(0.02)
    return weight


def drawn(shape: Shape, variant: int) -> dict[str, NDArray[np.float32]]:
    """The weights of one of the blocks that are drawn."""
    return {kind: draw(size, 100 * variant + i) for i, (kind, size) in enumerate(shape.linears.items())}


def write(shape: Shape, folder: Path) -> tuple[Path, Path]:
    """Write both forms; return the Hugging Face directory and the GGUF."""
    packed: list[dict[str, tuple[NDArray[np.uint8], gguf.GGMLQuantizationType]]] = []
    halves: list[dict[str, NDArray[np.uint16]]] = []
    for variant in range(min(DRAWN, shape.blocks)):
        weights = drawn(shape, variant)
        halves.append({kind: (w.view(np.uint32) >> 16).astype(np.uint16) for kind, w in weights.items()})
        packed.append({})
        for kind, half in halves[-1].items():
            finer = kind in _FINER and variant % 2 == 0
            type_ = gguf.GGMLQuantizationType.Q6_K if finer else gguf.GGMLQuantizationType.Q4_K
            stored = (half.astype(np.uint32) << 16).view(np.float32)
            packed[-1][kind] = quantize(stored, type_), type_
    hf = folder / "hf"
    hf.mkdir()
    _write_hf(shape, hf, halves)
    return hf, _write_gguf(shape, folder / "model.gguf", packed)


def quantize(weight: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> NDArray[np.uint8]:
    """Rows in a k-quant, which the gguf package does not write: by ggml itself."""
    from llama_cpp._ggml import libggml

    call = libggml.ggml_quantize_chunk
    call.restype = ctypes.c_size_t
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty((len(weight), weight.shape[1] // block * size), np.uint8)
    call(int(kind), weight.ctypes.data, out.ctypes.data, 0, len(weight), weight.shape[1], None)
    return out


def _write_hf(shape: Shape, folder: Path, variants: list[dict[str, NDArray[np.uint16]]]) -> None:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.middle,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.hidden // 128,
        "num_key_value_heads": max(1, shape.keys // 128),
    }
    (folder / "config.json").write_text(json.dumps(config))
    index: dict[str, str] = {}
    shards = -(-shape.blocks // BLOCKS_A_SHARD)
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        blocks = range(shard * BLOCKS_A_SHARD, min(shape.blocks, (shard + 1) * BLOCKS_A_SHARD))
        arrays = {
            f"model.layers.{block}.{_HF[kind]}.weight": array
            for block in blocks
            for kind, array in variants[block % len(variants)].items()
        }
        header: dict[str, Any] = {}
        end = 0
        for tensor, array in arrays.items():
            header[tensor] = {
                "dtype": "BF16",
                "shape": array.shape,
                "data_offsets": [end, end + array.nbytes],
            }
            end += array.nbytes
            index[tensor] = name
        packed = json.dumps(header).encode()
        packed += b" " * (-len(packed) % 8)
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(packed)) + packed)
            for array in arrays.values():
                file.write(array.data)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _write_gguf(
    shape: Shape, path: Path, variants: list[dict[str, tuple[NDArray[np.uint8], gguf.GGMLQuantizationType]]]
) -> Path:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(shape.blocks)
    writer.add_embedding_length(shape.hidden)
    writer.add_head_count(shape.hidden // 128)
    writer.add_head_count_kv(max(1, shape.keys // 128))
    for block in range(shape.blocks):
        for kind, (rows, type_) in variants[block % len(variants)].items():
            writer.add_tensor(f"blk.{block}.{kind}.weight", rows, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
