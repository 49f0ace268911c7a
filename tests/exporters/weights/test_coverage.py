"""Layers on which llama.cpp ignores an adapter are left out by name; untested architectures are told."""

from __future__ import annotations

import warnings

import models
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tinylora_edge import MicroVector, ModulesLeftOutWarning, TinyLoraWarning, UntestedArchitectureWarning
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.exporters.weights.gguf import DIRECT

PROMPT = list(b"one two three")


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory):
    path = tmp_path_factory.mktemp("deepseek") / "base.gguf"
    return models.write_gguf(models.tiny_model("deepseek2"), path)


def modules(path, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        factors = export_gguf(path, tmp_path / "bundle").bases.factors
    ours = [each for each in caught if issubclass(each.category, TinyLoraWarning)]
    return set(factors.modules), [(each.category, str(each.message)) for each in ours]


def test_an_untested_architecture_is_exported_with_a_warning(write, tmp_path):
    found, caught = modules(write(architecture="minicpm"), tmp_path)
    assert len(found) == 14
    [(category, text)] = caught
    assert category is UntestedArchitectureWarning
    assert "'minicpm'" in text


def test_what_llama_cpp_multiplies_without_adapters_is_left_out(deepseek, tmp_path):
    found, caught = modules(deepseek, tmp_path)
    assert "blk.0.attn_output.weight" in found
    assert "blk.0.attn_q.weight" not in found
    [(category, text)] = caught
    assert category is ModulesLeftOutWarning
    assert "2 linear layers (attn_q, such as blk.0.attn_q.weight)" in text


def test_an_adapter_there_would_load_and_do_nothing(deepseek, load, tmp_path, monkeypatch):
    """If this fails, llama.cpp applies adapters there now: take the kind out of `DIRECT`."""
    monkeypatch.setitem(DIRECT, "deepseek2", frozenset())
    settings = ExportSettings(targets=("attn_q",))
    report = export_gguf(deepseek, tmp_path / "bundle", settings=settings)
    llm = load(report.output)
    plain = models.llama_logits(llm, PROMPT)
    llm.swap(MicroVector([1.0]))
    assert np.array_equal(models.llama_logits(llm, PROMPT), plain)


LEFT_OUT = {
    "blocks that predict": ({"metadata": {"llama.nextn_predict_layers": 1}}, 7, "from 1 on predict further"),
    "shared keys and values": (
        {"metadata": {"llama.attention.shared_kv_layers": 1}},
        12,
        r"\(attn_k, attn_v, such as blk.1.* blocks from 1 on take keys and values",
    ),
    "a scale beside": ({"extra": {"blk.0.ffn_up.scale": np.ones(1, np.float32)}}, 13, "blk.0.ffn_up.weight"),
}


@pytest.mark.parametrize(("fields", "count", "message"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_is_left_out_of_some_models(fields, count, message, write, tmp_path):
    with pytest.warns(ModulesLeftOutWarning, match=message):
        factors = export_gguf(write(**fields), tmp_path / "bundle").bases.factors
    assert len(factors.modules) == count


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_language_model_inside_of_one_that_sees(prefix, tmp_path):
    model = models.tiny_model("gemma3")
    base = models.write_gguf(model, tmp_path / "base.gguf")
    hf = models.write_hf(model, tmp_path / "hf")
    tensors = {
        name.replace("model.", prefix, 1): t for name, t in load_file(hf / "model.safetensors").items()
    }
    save_file(tensors, hf / "model.safetensors")
    left = export_gguf(base, tmp_path / "l").bases.factors
    assert export_gguf(hf, tmp_path / "r", base=base).bases.factors.digest == left.digest
