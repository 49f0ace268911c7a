"""JSON in a Hugging Face directory: its configuration, its index, and the header of a safetensors file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from support import BAD_DOCUMENTS

from tinylora_edge import ExportError
from tinylora_edge.exporters.weights.hf import HFConfig
from tinylora_edge.exporters.weights.safetensors import read_safetensors, shards


def safetensors(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
def test_documents(tmp_path: Path, name: str) -> None:
    data = BAD_DOCUMENTS[name]
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ExportError, match=r"config\.json"):
        HFConfig(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(data)
    with pytest.raises(ExportError, match=r"model\.safetensors\.index\.json"):
        shards(tmp_path)
    with pytest.raises(ExportError, match=r"model\.safetensors is damaged"):
        read_safetensors(safetensors(tmp_path / "model.safetensors", data))


@pytest.mark.parametrize("layers", ["x", None, 1.5e999, [], "9" * 400, -1])
def test_numbers_of_a_configuration(tmp_path: Path, layers: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": layers}))
    with pytest.raises(ExportError, match=r"config\.json"):
        HFConfig(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": 4},
        {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": {}, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [[1]], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        [],
        "F32",
    ],
)
def test_headers_of_wrong_types(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"model.norm.weight": entry}).encode()
    with pytest.raises(ExportError, match=r"model\.safetensors"):
        read_safetensors(safetensors(tmp_path / "model.safetensors", header, bytes(4)))


@pytest.mark.parametrize(
    "shard", ["a\0b", "", "x" * 256, "é" * 128, "\ud800", "..", "../x", "/x", 7, None, ["x"], {}]
)
def test_names_of_shards(tmp_path: Path, shard: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ExportError, match=r"index|lacks"):
        shards(tmp_path)
