"""Damaged ONNX models are refused with one error; of a folder, a bundle takes what belongs to a model."""

from __future__ import annotations

import onnx
import pytest
from onnx_toy import Writer, basis_of, random_weights, save
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from tinylora_edge import ExportError
from tinylora_edge.exporters.onnx.bake import bake
from tinylora_edge.limits import TOKENIZER_BYTES

WEIGHTS = random_weights()


def refused(model, source, tmp_path, match):
    (source / "model.onnx").write_bytes(model.SerializeToString())
    output = tmp_path / "output"
    output.mkdir()
    with pytest.raises(ExportError, match=match):
        bake(source, basis_of(WEIGHTS).factors, output)
    assert list(output.iterdir()) == []


def shorten(tensor):
    for entry in tensor.external_data:
        if entry.key == "length":
            entry.value = "100"


def retype(tensor):
    tensor.data_type = 99


def stretch(tensor):
    tensor.dims[:] = [1 << 62, 1 << 62]


def unfold(tensor):
    tensor.dims.extend([1] * 9)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (shorten, r"has 100 bytes, .*\[64, 64\] ask for 16,384"),
        (retype, "element type 99"),
        (stretch, "is truncated"),
        (unfold, "at most 8 dimensions"),
    ],
)
def test_tensors_that_are_not_as_large_as_they_say(damage, why, tmp_path):
    source = save(Writer(WEIGHTS, "builder").model(), tmp_path / "source", data="model.onnx.data")
    model = onnx.load(source / "model.onnx", load_external_data=False)
    damage(next(tensor for tensor in model.graph.initializer if tensor.dims == [64, 64]))
    refused(model, source, tmp_path, why)


@pytest.mark.parametrize("position", [1, 2, 3], ids=["blocks", "tiled", "zeros"])
def test_quantized_weights_that_are_not_as_large_as_they_say(position, tmp_path):
    quantizer = MatMulNBitsQuantizer(Writer(WEIGHTS, "builder").model(), block_size=32, is_symmetric=False)
    quantizer.process()
    model = quantizer.model.model
    source = save(model, tmp_path / "source", data=None)
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[position])
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.reshape(-1)[:-2], tensor.name))
    refused(model, source, tmp_path, "K = 64, N = 64 and blocks of 32")


def test_a_bundle_takes_from_a_folder_what_belongs_to_a_model(tmp_path):
    """It is published: keys, notes and data that lie beside the graph stay where they are."""
    source, output = save(Writer(WEIGHTS, "builder").model(), tmp_path / "source"), tmp_path / "output"
    output.mkdir()
    kept = {
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "spiece.model"),
        *("chat_template.jinja", "qwen.tiktoken", "LICENSE", "LICENSE.txt", "NOTICE"),
    }
    others = {".env", "fleet.key", "id_ed25519", "config.json.bak", "notes.txt", "train.jsonl", "old.onnx"}
    for name in kept | others:
        (source / name).write_text("{}")
    (source / "tokenizer").mkdir()
    with open(source / "tokenizer.bin", "wb") as file:
        file.truncate(TOKENIZER_BYTES + 1)
    bake(source, basis_of(WEIGHTS).factors, output)
    graph = {"model.onnx", "model.onnx.data", "zeros.onnx_adapter"}
    assert {path.name for path in output.iterdir()} == kept | graph
