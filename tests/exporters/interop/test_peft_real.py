"""The real model between PEFT and here: logits equal within 1e-4 both ways, in float32."""

from __future__ import annotations

import copy
from pathlib import Path

import models
import pytest
import smollm2
import torch
from peft import PeftModel, TinyLoraConfig, get_peft_model

from tinylora_edge import MicroVector, load_basis
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.exporters.interop import peft as interop

TARGETS = ["q_proj", "v_proj"]  # 60 of 210 modules; PEFT decomposes each one fully

pytestmark = pytest.mark.filterwarnings("ignore")


def test_round_trip(smollm2_gguf: Path, tmp_path: Path) -> None:
    model = smollm2.in_torch(smollm2_gguf)
    hf = smollm2.hf_directory(smollm2_gguf)
    f32 = smollm2.requantized(smollm2_gguf, smollm2.ALL_F32)
    tokens = smollm2.tokenize(smollm2_gguf, smollm2.PROMPTS[:2])
    base = [models.torch_logits(model, each) for each in tokens]

    config = TinyLoraConfig(r=2, u=1, weight_tying=1 - 13 / 60, target_modules=TARGETS, task_type="CAUSAL_LM")
    trained = get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for row in trained.base_model.tinylora_v["default"].values():
            row.copy_(torch.randn(row.shape, generator=torch.Generator().manual_seed(len(row))) * 0.1)
    trained.save_pretrained(tmp_path / "theirs")
    theirs = [models.torch_logits(trained, each) for each in tokens]
    assert smollm2.worst_difference(theirs, base) > 0.1, "the adapter does something"
    theirs_merged = [models.torch_logits(trained.merge_and_unload(), each) for each in tokens]
    del trained

    basis, vector = interop.read_tinylora(tmp_path / "theirs", hf, base=f32)
    with models.merged(model, basis, vector) as merged:
        ours = [models.torch_logits(merged, each) for each in tokens]
    into = smollm2.worst_difference(ours, theirs_merged), smollm2.worst_difference(ours, theirs)

    bundle = export_gguf(
        f32, tmp_path / "bundle", settings=ExportSettings(groups=12, targets=("attn_q", "attn_v"))
    ).output
    basis = load_basis(bundle / "basis.gguf")
    vector = MicroVector.random(basis, 0.3, seed=1)
    interop.write_tinylora(basis, vector, tmp_path / "ours", hf)
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    theirs = [models.torch_logits(loaded, each) for each in tokens]
    theirs_merged = [models.torch_logits(loaded.merge_and_unload(), each) for each in tokens]
    with models.merged(model, basis, vector) as merged:
        ours = [models.torch_logits(merged, each) for each in tokens]
    assert smollm2.worst_difference(ours, base) > 0.01, "the vector does something"
    out = smollm2.worst_difference(ours, theirs_merged), smollm2.worst_difference(ours, theirs)
    print(f"merged: {into[0]:.1e} in, {out[0]:.1e} out; with a side path: {into[1]:.1e}, {out[1]:.1e}")
    assert max(into[0], out[0]) < 1e-4
    # A side path adds in another order than a merged weight: up to 9e-5 here, with logits of up to 30.
    assert max(into[1], out[1]) < 3e-4
