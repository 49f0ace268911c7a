"""The real model through the whole way: GGUF, graph, baked graph, ONNX Runtime, against torch."""

from __future__ import annotations

import models
import numpy as np
import onnx_models
import pytest
import smollm2

from tinylora_edge import MicroVector
from tinylora_edge.exporters import export_onnx
from tinylora_edge.modules import Heads


@pytest.fixture(scope="module")
def prompts(smollm2_gguf):
    return smollm2.tokenize(smollm2_gguf, smollm2.PROMPTS)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def report(request, smollm2_gguf, tmp_path_factory):
    graph = onnx_models.graph(smollm2_gguf, request.param, Heads(queries=9, keys=3))
    output = tmp_path_factory.mktemp("real") / "bundle"
    return export_onnx(smollm2_gguf, output, graph=graph, with_gguf=True), graph, request.param


def test_zeros_are_the_base_bit_for_bit(report, prompts):
    made, graph, _ = report
    base, ours = onnx_models.session(graph), onnx_models.session(made.output / "onnx")
    for tokens in prompts:
        expected = onnx_models.logits(base, [tokens])
        assert np.array_equal(onnx_models.logits(ours, [tokens]), expected)
        assert np.array_equal(onnx_models.logits(ours, [tokens], np.zeros(210 * 64)), expected)
    assert onnx_models.greedy(ours, prompts[1], 24) == onnx_models.greedy(base, prompts[1], 24)


def test_a_vector_is_the_merged_weights(report, prompts, smollm2_gguf, record_property):
    made, _, precision = report
    ours = onnx_models.session(made.output / "onnx")
    model = smollm2.in_torch(smollm2_gguf)
    basis = made.bases.basis(rank=8)
    vector = MicroVector.random(basis, 10, seed=7)
    r = onnx_models.row(basis, vector)
    bare = [onnx_models.logits(ours, [tokens])[0] for tokens in prompts]
    found = [onnx_models.logits(ours, [tokens], r)[0] for tokens in prompts]
    expected_bare = [models.torch_logits(model, tokens) for tokens in prompts]
    with models.merged(model, basis, vector):
        expected = [models.torch_logits(model, tokens) for tokens in prompts]
        text = models.torch_greedy(model, prompts[1], 24)
    off, effect = smollm2.worst_difference(found, expected), smollm2.worst_difference(found, bare)
    off_bare = smollm2.worst_difference(bare, expected_bare)
    kl = max(smollm2.kl_divergence(e, f) for e, f in zip(expected, found, strict=True))
    measured = f"off by {off:.2g}, KL {kl:.2g}, without a vector by {off_bare:.2g}, effect {effect:.2g}"
    record_property("measured", measured)
    print(measured)
    assert effect > 1
    assert kl <= 0.03  # with the builder's 4 bits the base alone is .3 off
    if precision == "fp32":
        assert off <= 1e-3
        assert onnx_models.greedy(ours, prompts[1], 24, r) == text
    else:  # a third of the room: the head and the table of embeddings are the same bytes
        assert (made.output / "onnx" / "model.onnx.data").stat().st_size < 155_000_000
