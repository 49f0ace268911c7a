"""Mixture of experts: factors of every expert, stacked."""

from __future__ import annotations

import models
import noise
import numpy as np
import pytest
import torch

from tinylora_edge import ExportError, MicroVector, ModulesLeftOutWarning, UnsupportedModelError
from tinylora_edge.exporters import Export, ExportSettings, export_gguf

PROMPT = list(b"one two three four")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def test_gate_and_up_in_one_tensor(load, tmp_path):
    qwen = models.tiny_model("deepseek2")
    base = models.write_gguf(qwen, tmp_path / "base.gguf", fuse_experts=True)
    with pytest.warns(ModulesLeftOutWarning, match="attn_q"):
        report = export_gguf(base, tmp_path / "bundle")
    basis = report.bases.basis(rank=8)
    assert set(basis.factors.kinds) & {*EXPERTS, "ffn_gate_up_exps"} == {"ffn_gate_up_exps", "ffn_down_exps"}
    llm = load(report.output)
    plain, bound = models.torch_logits(qwen, PROMPT), noise.of(llm, PROMPT)
    assert np.abs(models.llama_logits(llm, PROMPT) - plain).max() < bound
    vector = MicroVector.random(basis, 0.3 * np.sqrt(basis.size))
    llm.swap(vector)
    state = {name: tensor.clone() for name, tensor in qwen.state_dict().items()}
    both = basis.delta("blk.1.ffn_gate_up_exps.weight", vector)  # block 0 is dense
    state["model.layers.1.mlp.experts.gate_up_proj"] += torch.from_numpy(both)
    rest = [m for m in basis.modules if "gate_up" not in m]
    personal = models.tiny_model("deepseek2")
    personal.load_state_dict(state)
    with models.merged(personal, basis, vector, rest):
        expected = models.torch_logits(personal, PROMPT)
    assert np.abs(expected - plain).max() > 1
    assert np.abs(models.llama_logits(llm, PROMPT) - expected).max() < bound


def test_a_graph_has_no_place_for_them(tmp_path):
    base = models.write_gguf(models.tiny_model("qwen3moe"), tmp_path / "base.gguf")
    with pytest.raises(UnsupportedModelError, match="holds experts, which ONNX graphs"):
        Export(base, tmp_path / "bundle", target="onnx")


def test_a_directory_without_them(tmp_path):
    """With them it is refused: tests/exporters/test_architectures.py."""
    model = models.tiny_model("gpt-oss")
    base, hf = models.write_gguf(model, tmp_path / "base.gguf"), models.write_hf(model, tmp_path / "hf")
    dense = ExportSettings(targets=("!*_exps",))
    reports = [export_gguf(m, tmp_path / f"{m.name}-dense", base=base, settings=dense) for m in (base, hf)]
    assert reports[0].bases.factors.digest == reports[1].bases.factors.digest
    assert "ffn_up_exps" in export_gguf(base, tmp_path / "all").bases.factors.kinds


MODULE = "blk.1.ffn_up_exps.weight"


@pytest.mark.parametrize(
    ("value", "match"),
    [(np.nan, "expert 2.*NaN"), (0, rf"expert 2 cannot.*--targets '!{MODULE}'")],
    ids=["NaN", "dead"],
)
def test_an_expert_that_cannot_be_adapted(value, match, refuse, tmp_path):
    def third(array):
        array[2] = value
        return array

    change = models.altered(MODULE, third)
    base = models.write_gguf(models.tiny_model("qwen3moe"), tmp_path / "base.gguf", change=change)
    refuse(ExportError, rf"{MODULE}, {match}", base)
    settings = ExportSettings(targets=(f"!{MODULE}",))  # what the error suggests
    assert MODULE not in export_gguf(base, tmp_path / "b", settings=settings).bases.factors.modules
