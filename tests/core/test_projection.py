"""Projections: the golden values, a second implementation in plain integers, and their statistics."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
import support
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import BasisError
from tinylora_edge.projection import project

GOLDEN = json.loads((support.GOLDEN / "projection.json").read_text())["projection"]
WORD = (1 << 64) - 1


def reference(seed: int, name: str, u: int, r: int) -> list[float]:
    """The entries of P in order, on Python's integers: docs/FORMAT.md, "Projection", word for word."""

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
        return z ^ (z >> 31)

    def float32(x: float) -> float:
        return struct.unpack("<f", struct.pack("<f", x))[0]

    hashed = 0xCBF29CE484222325
    for byte in name.encode():
        hashed = (hashed ^ byte) * 0x100000001B3 & WORD
    key = mix(seed ^ hashed)
    # double carries more than twice float32's precision, so rounding twice is rounding once
    scale = float32(1 / float32(math.sqrt(r)))
    entries = []
    for i in range(u):
        for a in range(r):
            for b in range(r):
                c = (i * r + a) * r + b
                s = 0
                for step in (1, 2, 3):
                    word = mix(key + (3 * c + step) * 0x9E3779B97F4A7C15 & WORD)
                    s += sum(word >> shift & 0xFFFF for shift in (0, 16, 32, 48))
                entries.append(float32(float32((s - 393210) / 65536) * scale))
    return entries


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['name']}-u{case['u']}-r{case['r']}")
def test_golden(case):
    p = project(case["seed"], case["name"], case["u"], case["r"])
    assert p.dtype == np.float32
    assert p.shape == (case["u"], case["r"], case["r"])
    assert p.astype("<f4").tobytes().hex() == case["hex_le_f32"]
    assert p.reshape(-1)[:4].tolist() == case["first"]


@given(st.integers(0, WORD), st.text(max_size=40), st.integers(1, 6), st.integers(1, 5))
def test_equals_the_plain_integer_implementation(seed, name, u, r):
    assert project(seed, name, u, r).reshape(-1).tolist() == reference(seed, name, u, r)


def test_many_entries_are_drawn_in_little_memory():
    name, u = "blk.0.attn_q.weight", (1 << 16) + 3
    assert project(5, name, u, 1).reshape(-1).tolist() == reference(5, name, u, 1)
    with support.memory_limit(64 << 20):
        assert project(1, name, 64, 256).nbytes == 16 << 20


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_entries_are_close_to_normal(rank):
    """Bounds are five standard errors at this size."""
    modules = [f"blk.{block}.{kind}.weight" for block in range(16) for kind in ("attn_q", "ffn_down")]
    u = (1 << 19) // (len(modules) * rank * rank)
    p = np.stack([project(42, module, u, rank) for module in modules]).astype(np.float64) * math.sqrt(rank)
    x = p.reshape(-1)
    n = x.size
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**4).mean() / x.var() ** 2 - 3 + 0.1) < 5 * math.sqrt(24 / n)
    assert np.abs(x).max() <= 6  # twelve uniforms


def test_modules_seeds_and_neighbours_are_uncorrelated():
    n = 1 << 16
    one = project(1, "blk.0.attn_q.weight", n, 1).reshape(-1)
    others = {
        "the next seed": project(2, "blk.0.attn_q.weight", n, 1).reshape(-1),
        "the next block": project(1, "blk.1.attn_q.weight", n, 1).reshape(-1),
        "another kind": project(1, "blk.0.attn_k.weight", n, 1).reshape(-1),
        "the next entry": np.roll(one, 1),
    }
    for what, other in others.items():
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(n), what


@pytest.mark.parametrize(
    ("seed", "u", "rank", "said"),
    [(-1, 1, 2, "-1"), (1 << 64, 1, 2, str(1 << 64)), (0, 0, 2, "u 0"), (0, 1, 0, "rank 0")],
)
def test_refuses_arguments_out_of_range(seed, u, rank, said):
    with pytest.raises(BasisError, match=said):
        project(seed, "blk.0.attn_q.weight", u, rank)
