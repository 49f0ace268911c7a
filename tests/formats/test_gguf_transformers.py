"""transformers reads a GGUF file once in a block, and computes what llama.cpp does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import models
import numpy as np
import pytest
import torch
from transformers import modeling_gguf_pytorch_utils as loader
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tinylora_edge.exporters.onnx.builder import dequantize_into
from tinylora_edge.formats.gguf_transformers import read_model, read_once


def test_afterwards_everything_is_as_it_was() -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with read_once():
        maps = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) for _ in range(2)]
        assert maps[0] is maps[1]
    with pytest.raises(OSError, match="nonesuch"), read_once():
        gguf.GGUFReader("nonesuch")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_threads_take_turns() -> None:
    before, inside = gguf.GGUFReader, threading.Barrier(2)

    def load(_: int) -> bool:
        inside.wait()
        with read_once():
            mine = gguf.GGUFReader
            time.sleep(0.01)  # the other one would change it now
            return gguf.GGUFReader is mine and mine is not before

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(load, range(2))) == [True, True]
    assert gguf.GGUFReader is before


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("architecture", "kind", "scaled"),
    [
        ("llama", "linear", {"factor": 4.0}),
        ("llama", "llama3", {"factor": 32.0, "rope_theta": 5e5, **LLAMA3}),
        ("qwen2", "yarn", {"factor": 4.0, "original_max_position_embeddings": 64}),
    ],
)
def test_scaled_positions_of_a_split_model(
    tmp_path: Path, architecture: str, kind: str, scaled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, extra = models.tiny_model(architecture), None
    model.config.rope_parameters |= {"rope_type": kind, **scaled}
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    if kind == "llama3":
        plain = ROPE_INIT_FUNCTIONS["linear"](model.config, "cpu")[0] * scaled["factor"]
        extra = {"rope_freqs.weight": (plain / model.model.rotary_emb.inv_freq).numpy()}
    whole = models.write_gguf(model, tmp_path / "model.gguf", extra=extra)
    first, *_ = models.split_gguf(whole, tmp_path, 9)
    tokens = [7 * i % 256 for i in range(100)]
    expected = models.torch_logits(model, tokens)
    found = models.torch_logits(read_model(first, torch.float32), tokens)
    assert np.abs(found - expected).max() < 1e-3
    with closing(llama_cpp.Llama(str(first), n_ctx=128, logits_all=True, verbose=False)) as llm:
        assert np.abs(models.llama_logits(llm, tokens) - expected).max() < 0.2  # a KV cache in float16
    monkeypatch.setattr(loader, "load_gguf_checkpoint", loader.load_gguf_checkpoint)  # so that it is put back
    dequantize_into(tmp_path)
    in_files, maps = read_model(first, torch.float32), Path("/proc/self/maps").read_text()
    assert maps.count(" (deleted)") >= len(in_files.state_dict())
    assert np.array_equal(models.torch_logits(in_files, tokens), found)


def test_yarn_without_the_length_that_it_was_trained_on(tmp_path, monkeypatch):
    """llama.cpp then takes the whole context's."""
    model = models.tiny_model("qwen2")
    scaled = {"factor": 4.0, "original_max_position_embeddings": model.config.max_position_embeddings}
    model.config.rope_parameters |= {"rope_type": "yarn", **scaled}
    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_scaling_orig_ctx_len", lambda *_: None)
    found = read_model(models.write_gguf(model, tmp_path / "model.gguf"), torch.float32)
    assert found.config.rope_parameters.items() >= scaled.items()


@pytest.mark.parametrize("tensor", ["rope_factors_long.weight", "rope_freqs.weight", "output_norm.weight"])
def test_a_model_that_would_be_another_one(tmp_path: Path, tensor: str) -> None:
    extra = {tensor: np.linspace(1, 9, 8, dtype=np.float32)} if "rope" in tensor else None
    path, rename = tmp_path / "model.gguf", lambda name: None if name == tensor else name
    models.write_gguf(models.tiny_model("llama"), path, rename=rename, extra=extra)
    with pytest.raises(ValueError, match=r"lacks model\.norm|scaled by (longrope|llama3)"):
        read_model(path, torch.float32)
