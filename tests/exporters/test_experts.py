"""Mixture of experts: factors of every expert, stacked."""

from __future__ import annotations

import models
import numpy as np
import pytest

from tinylora_edge import MicroVector
from tinylora_edge.exporters import Settings, export_gguf

PROMPT = list(b"one two three four")


@pytest.mark.parametrize("settings", [Settings(groups=5), Settings(u=3, groups=2)], ids=["scales", "fold"])
def test_every_expert_has_its_own_factors(settings, load, tmp_path):
    model = models.tiny_model("qwen3moe")
    base = models.write_gguf(model, tmp_path / "base.gguf")
    report = export_gguf(base, tmp_path / "bundle", settings=settings)
    basis = report.basis
    weights = models.gguf_tensors(model)
    for kind in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        position = basis.index(f"blk.1.{kind}.weight")
        a, b, w = basis.a[position], basis.b[position], weights[basis.modules[position]]
        assert (a.shape, b.shape) == ((4, 2, w.shape[2]), (4, w.shape[1], 2))
        for expert in range(4):
            s = np.linalg.svd(w[expert].astype(np.float64), compute_uv=False)
            assert np.linalg.norm(b[expert], axis=0) == pytest.approx(s[:2], rel=1e-4)

    vector = MicroVector.random(basis, 0.7)
    plain = models.torch_logits(model, PROMPT)
    llm = load(report.output)
    assert np.abs(models.llama_logits(llm, PROMPT) - plain).max() < 1e-3
    llm.swap(vector)
    with models.merged(model, basis, vector) as personal:
        expected = models.torch_logits(personal, PROMPT)
        tokens = models.torch_greedy(personal, PROMPT, 16)
    change = np.abs(expected - plain).max()
    assert change > 1
    assert np.abs(models.llama_logits(llm, PROMPT) - expected).max() < 1e-4 * change
    assert models.llama_greedy(llm, PROMPT, 16) == tokens
