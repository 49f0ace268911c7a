"""Weights as float32: routines of ggml, of gguf.quants, of safetensors; and how far they are from factors."""

from __future__ import annotations

from math import inf

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from tinylora_edge.exporters.weights import dequantize
from tinylora_edge.exporters.weights.dequantize import Matrix, distance, float_decoder, ggml_decoder
from tinylora_edge.factorization import AGREEMENT, factors, gap, truncated_svd


def readable_by_gguf():
    """Every type that gguf.quants can read, found by asking it."""
    for kind in Type:
        _, size = gguf.GGML_QUANT_SIZES[kind]
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        yield kind


READABLE = list(readable_by_gguf())


@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")
@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_ggml_and_gguf_give_the_same_values(kind):
    """Of random bytes: every code, every scale, NaN and infinity among them."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (37, 1024 // block * size), dtype=np.uint8)
    exact = gguf.dequantize(raw, kind).astype(np.float32)
    assert np.array_equal(ggml_decoder(kind, raw)(raw), exact, equal_nan=True)
    if kind == Type.F32:
        return
    fast = dequantize._ggml_routine(kind)
    assert fast is not None
    assert np.array_equal(fast(raw), exact, equal_nan=True)
    # Rows of a part of the matrix, as the factorization reads it; not contiguous either.
    assert np.array_equal(fast(raw[5:9]), exact[5:9], equal_nan=True)
    assert np.array_equal(fast(raw[::3]), exact[::3], equal_nan=True)


def test_a_routine_that_disagrees_is_not_used(monkeypatch):
    """Another build of ggml may decode a type otherwise; blocks of the tensor at hand decide."""
    raw = np.abs(np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32))
    packed = gguf.quantize(raw, Type.Q8_0)
    exact = gguf.dequantize(packed, Type.Q8_0)
    rows_read = []

    def wrong(rows):
        rows_read.append(len(rows))
        return np.zeros((len(rows), 64), np.float32)

    monkeypatch.setattr(dequantize, "_ggml_routine", lambda kind: wrong)
    assert np.array_equal(ggml_decoder(Type.Q8_0, packed)(packed), exact)
    assert rows_read == [2]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32), ("F64", torch.float64)],
)
def test_floats_as_torch_reads_them(name, dtype):
    size = torch.empty(0, dtype=dtype).element_size()
    raw = np.random.default_rng(0).integers(0, 256, (64, 128 * size), dtype=np.uint8)
    expected = torch.from_numpy(raw.copy()).view(dtype).float().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        found = float_decoder(name)(raw)
    assert found.dtype == np.float32
    nan = np.isnan(found)  # whose payload may differ
    assert np.array_equal(nan, np.isnan(expected))
    assert np.array_equal(found.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.fixture
def weight():
    return np.random.default_rng(0).standard_normal((700, 40)).astype(np.float32)


def stored(weight):
    raw = np.ascontiguousarray(weight).view(np.uint8)
    return Matrix(raw, weight.shape[1], float_decoder("F32"))


def test_a_weight_is_near_its_factors_and_far_from_others(weight):
    a, b = factors(truncated_svd(weight, 2))
    noisy = weight + 0.01 * np.random.default_rng(1).standard_normal(weight.shape).astype(np.float32)
    assert distance(a, b, [stored(weight)]) < 0.01
    assert distance(a, b, [stored(noisy)]) < 0.1
    assert distance(a, b, [stored(weight[::-1])]) > 2 * AGREEMENT
    assert gap((weight @ a.T)[100:200], b[100:200]) < 0.01


def test_experts_are_taken_one_by_one(weight):
    several = [weight, weight[::-1], 2 * weight]
    pairs = [factors(truncated_svd(one, 2)) for one in several]
    a, b = (np.stack(part) for part in zip(*pairs, strict=True))
    assert distance(a, b, [stored(one) for one in several]) < 0.01
    assert distance(a, b, [stored(one) for one in several[::-1]]) > AGREEMENT
    assert distance(a, b, [stored(weight)]) == inf


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_cannot_be_is_infinitely_far(weight):
    a, b = factors(truncated_svd(weight, 2))
    assert distance(a, b, [stored(weight[:-1])]) == inf
    assert distance(a, b, [stored(np.full_like(weight, np.nan))]) == inf
    assert distance(a, 0 * b, [stored(weight)]) == inf
