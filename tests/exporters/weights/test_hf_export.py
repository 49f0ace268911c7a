"""A basis from a Hugging Face directory is that of the GGUF: the same change of the weights."""

from __future__ import annotations

import json
import re
import struct

import models
import pytest
import support
import torch
from safetensors.torch import load_file, save_file

from tinylora_edge import ExportError, UnsupportedModelError
from tinylora_edge.exporters import ExportSettings, export_gguf, export_onnx
from tinylora_edge.exporters.weights.hf import HFConfig, shards
from tinylora_edge.limits import BLOCKS

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def hf(tiny_model, tmp_path):
    return models.write_hf(tiny_model, tmp_path / "hf")


@pytest.fixture
def sharded(tiny_model, tmp_path):
    return models.write_hf(tiny_model, tmp_path / "sharded", max_shard_size="60KB")


def test_a_missing_shard_or_tokenizer(sharded, tiny_gguf, refuse, tmp_path):
    with pytest.raises(ExportError, match=r"sharded has no tokenizer\.json"):
        export_onnx(sharded, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [sharded]
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    refuse(ExportError, lost.name, sharded, base=tiny_gguf)


@pytest.mark.parametrize("name", support.BAD_DOCUMENTS)
def test_damaged_documents(sharded, name):
    for document in ("model.safetensors.index.json", "config.json"):
        (sharded / document).write_bytes(support.BAD_DOCUMENTS[name])
        with pytest.raises(ExportError, match=re.escape(document)):
            shards(sharded) if "index" in document else HFConfig(sharded)
    layers = {"model_type": "llama", "num_hidden_layers": "x"}
    (sharded / "config.json").write_text(json.dumps(layers))
    with pytest.raises(ExportError, match=r"config\.json"):
        HFConfig(sharded)


@pytest.mark.parametrize("shard", ["a\0b", "", "x" * 256, "\ud800", "..", "../x", "/x", 7, None, ["x"], {}])
def test_names_of_shards(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ExportError, match=r"index|lacks"):
        shards(tmp_path)


def with_entry(**changes):
    entry = {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 16384]} | changes
    header = json.dumps({Q_PROJ: entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16384)


DAMAGED = {
    "empty": b"",
    "a header longer than the file": struct.pack("<Q", 1 << 62) + b"{}" * 40,
    "offsets beyond the end": with_entry(data_offsets=[0, 1 << 40]),
    "fewer bytes than the shape needs": with_entry(shape=[64, 65]),
    "an unknown type": with_entry(dtype="F33"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file(hf, tiny_gguf, refuse, content):
    (hf / "model.safetensors").write_bytes(content)
    refuse(ExportError, r"model\.safetensors is damaged", hf, base=tiny_gguf)


def test_scaled_weights(hf, tiny_gguf, refuse):
    tensors = load_file(hf / "model.safetensors")
    tensors[f"{Q_PROJ}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, hf / "model.safetensors")
    refuse(UnsupportedModelError, "scale", hf, base=tiny_gguf)


def test_a_directory_without_one_of_the_weights(hf, tiny_gguf, refuse, tmp_path):
    tensors = load_file(hf / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, hf / "model.safetensors")
    refuse(ExportError, r"blk\.1\.ffn_up\.weight", hf, base=tiny_gguf)
    # What the error suggests works.
    export_gguf(hf, tmp_path / "b", base=tiny_gguf, settings=ExportSettings(targets=("attn_*",)))


def test_a_base_of_more_blocks_than_are_read(hf, tiny_model, refuse, tmp_path):
    """A table of names is made for every block: a small file must not take gigabytes."""

    change = {"rename": lambda name: name.replace("blk.1.", f"blk.{BLOCKS}.")}
    change["metadata"] = {"llama.block_count": BLOCKS + 1}
    base = models.write_gguf(tiny_model, tmp_path / "deep.gguf", **change)
    refuse(ExportError, r"deep\.gguf has tensors of block 4,096: at most 4,096 blocks", hf, base=base)


def test_a_configuration_of_many_blocks(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1000000}')
    with support.memory_limit(64 << 20), pytest.raises(ExportError, match="1000000 layers"):
        HFConfig(tmp_path)
