"""Hostile files: small, well-formed, and declaring much. Each reader refuses them before it pays for them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import support

from tinylora_edge import BasisError
from tinylora_edge.errors import ExportError
from tinylora_edge.exporters.weights.hf import HFConfig
from tinylora_edge.formats.gguf import GGUFFile, MalformedGGUFError

MEMORY = 64 << 20  # bytes that a refusal may take beside what was there


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, value: str = "x") -> bytes:
    return text(name) + struct.pack("<I", 8) + text(value)


def tensor(name: str, size: int, offset: int) -> bytes:
    return text(name) + struct.pack("<IQIQ", 1, size, 0, offset)


def image(pairs: list[bytes], tensors: list[bytes], data: bytes = b"") -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join([*pairs, *tensors])
    return head + bytes(-len(head) % 32) + data


GGUF = {
    "a long key": (lambda: image([key("k" * 1025)], []), "1025 bytes: at most 1024"),
    "a long tensor's name": (
        lambda: image([], [tensor("t" * 1025, 8, 0)], bytes(32)),
        "1025 bytes: at most 1024",
    ),
    "many keys": (lambda: image([key(f"{i}") for i in range(262_145)], []), "262145 keys, .* at most 262144"),
    "a long text": (lambda: image([key("k", "x" * ((1 << 24) + 1))], []), "16777217 bytes: at most 16777216"),
    "many texts": (
        lambda: image([text("k") + struct.pack("<IIQ", 9, 8, 1 << 22 | 1) + bytes(8 << 22 | 8)], []),
        "a list of 4194305 texts: at most 4194304",
    ),
    "many tensors": (
        lambda: b"GGUF" + struct.pack("<IQQ", 3, 1 << 18 | 1, 0) + bytes(9 << 20),
        "262145 tensors, .* at most 262144",
    ),
    "tensors over each other": (
        lambda: image([], [tensor("a", 1000, 0), tensor("c", 8, 4032), tensor("b", 1000, 32)], bytes(4064)),
        "tensors a and b lie over the same bytes",
    ),
}


@pytest.mark.parametrize(("data", "said"), GGUF.values(), ids=GGUF)
def test_gguf(data: Callable[[], bytes], said: str) -> None:
    made = data()
    with support.memory_limit(MEMORY), pytest.raises(MalformedGGUFError, match=said):
        GGUFFile(made)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 257}, "at most 256 as their rank, not 257"),
        ({"rank": 205}, "at most 250,000 entries of R, not 252,150"),
        ({"modules": tuple(f"blk.{i}.attn_q.weight" for i in range(16_385))}, "at most 16,384 modules"),
        ({"modules": ("blk.0." + "x" * 1100,)}, "at most 1,024 bytes in a module's name, not 1,106"),
    ],
)
def test_factors(changes: dict[str, object], said: str) -> None:
    factors = support.random_factors()
    with support.memory_limit(MEMORY), pytest.raises(BasisError, match=said):
        replace(factors, **changes)


def test_a_configuration_of_many_blocks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1000000}')
    with support.memory_limit(MEMORY), pytest.raises(ExportError, match="1000000 layers"):
        HFConfig(tmp_path)
