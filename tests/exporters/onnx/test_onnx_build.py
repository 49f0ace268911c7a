"""Where graphs come from: the builder, for a GGUF as for a directory."""

from __future__ import annotations

import json
from contextlib import nullcontext

import converter
import models
import numpy as np
import onnx_models
import pytest
import smollm2
import transformers
from onnx_models import TOKENS

from tinylora_edge import MicroVector, UnsupportedModelError, load_bundle
from tinylora_edge.eval import measure_parity
from tinylora_edge.exporters import export_onnx
from tinylora_edge.exporters.onnx import builder
from tinylora_edge.modules import Heads


def check(report, model):
    ours = onnx_models.session(report.output / "onnx")
    basis = report.bases.basis(rank=4)
    vector = MicroVector.random(basis, 0.5, seed=2)
    for v in (None, vector):
        found = onnx_models.logits(ours, [TOKENS], None if v is None else onnx_models.row(basis, v))[0]
        with nullcontext() if v is None else models.merged(model, basis, v):
            assert np.abs(found - models.torch_logits(model, TOKENS)).max() <= 1e-4


def test_from_a_gguf(tmp_path, monkeypatch):
    monkeypatch.setattr(converter, "_add_vocabulary", onnx_models.add_vocabulary)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tempfile.py").write_text("raise SystemExit('the builder ran what lies here')")
    model, metadata = onnx_models.tiny("qwen2"), {"tokenizer.chat_template": "{{ messages[0].content }}"}
    source = models.write_gguf(model, tmp_path / "model.gguf", metadata=metadata)
    report = export_onnx(source, tmp_path / "bundle", with_gguf=True)

    check(report, model)
    assert report.onnx["graph"].startswith("onnxruntime-genai ")
    assert {p.name for p in report.output.iterdir()} == {"base.gguf", "basis.gguf", "manifest.json", "onnx"}
    assert (report.output / "onnx" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    assert load_bundle(report.output).check_base() != load_bundle(report.output).check_onnx()
    assert source.exists()
    assert json.loads((report.output / "manifest.json").read_text())["onnx"]["precision"] == "fp32"
    alike = measure_parity(report.output)
    assert (alike["prompts"], alike["begin_alike"], alike["empty"]) == (16, 16, {"llama": 0, "onnx": 0})


def test_from_a_quantized_gguf(tmp_path, monkeypatch):
    monkeypatch.setattr(converter, "_add_vocabulary", onnx_models.add_vocabulary)
    plain = models.write_gguf(onnx_models.tiny("llama"), tmp_path / "plain.gguf")
    source = models.quantize_file(plain, tmp_path / "model.gguf", smollm2.MOSTLY_Q8_0)
    report = export_onnx(source, tmp_path / "bundle")
    onnx = json.loads((report.output / "manifest.json").read_text())["onnx"]
    assert report.onnx["precision"] == onnx["precision"] == "int8"
    assert onnx["weights"] == {"kept": 16, "rounded": 0, "floats": 0}  # 14 layers, the head, the embeddings
    found = onnx_models.logits(onnx_models.session(report.output / "onnx"), [TOKENS])[0]
    expected = models.torch_logits(onnx_models.tiny("llama"), TOKENS)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_what_the_builder_does_not_know(tmp_path):
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = transformers.Olmo2Config(vocab_size=models.VOCABULARY, pad_token_id=258, **size)
    hf = onnx_models.write_hf(transformers.Olmo2ForCausalLM(config), tmp_path / "hf")
    (tmp_path / "work").mkdir()
    with pytest.raises(UnsupportedModelError):
        builder.build(hf, tmp_path / "work", "fp32", Heads())


def test_a_configuration_that_the_builder_reads_otherwise():
    """As Gemma 3's ends it, with transformers 5."""
    with pytest.raises(UnsupportedModelError, match=r"failed: KeyError: 'rope_type'\. .*--format gguf"):
        builder._run(["-c", "raise KeyError('rope_type')"], "it failed")
