"""`export --format onnx|both`: what it writes and what it says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx_models
import pytest
from invocation import Cli, contents

from tinylora_edge import load_bundle
from tinylora_edge.formats.onnx_graph import MetadataKey, read_onnx


@pytest.fixture(scope="session")
def hf() -> Path:
    return onnx_models.tiny_hf("llama")


@pytest.fixture(scope="session")
def graph(hf: Path) -> Path:
    return onnx_models.graph(hf, "fp32")


def test_a_graph_of_ones_own(cli: Cli, hf: Path, graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = cli("export", hf, "-o", out, "--format", "onnx", "--onnx", graph).done()

    assert sorted(contents(out)) == [
        "basis.gguf",
        "manifest.json",
        "onnx/",
        *sorted(f"onnx/{name}" for name in [*os.listdir(graph), "zeros.onnx_adapter"]),
    ]
    digest = load_bundle(out).factors.digest
    assert digest in text
    assert "exported hf to" in text or f"exported {hf.name} to" in text
    nodes = read_onnx(out / "onnx" / "model.onnx").metadata
    assert nodes[MetadataKey.FACTORS] == digest
    assert f"graph {graph}" in " ".join(text.split())
    assert load_bundle(out).check_base() == nodes[MetadataKey.FINGERPRINT]


def test_both_from_a_gguf_as_json(cli: Cli, tiny_gguf: Path, graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--format", "both", "--onnx", graph, "--onnx-input", "required"]
    record = cli("export", tiny_gguf, "-o", out, *options, "--json").record()

    found = load_bundle(out)
    assert record["fingerprints"] == [found.check_base(), found.check_onnx()]
    onnx = record["onnx"]
    assert onnx["fingerprint"] == found.check_onnx()
    assert (onnx["graph"], onnx["precision"], onnx["flavour"]) == (str(graph), None, "required")
    manifest = json.loads((out / "manifest.json").read_text())
    assert onnx["answers"] == manifest["onnx"]["answers"]
    assert onnx["answers"]["prompts"] == 16
    assert onnx["answers"]["same"] < 16  # the tokenizers of these two are not the same
    assert manifest["onnx"]["flavour"] == "required"
    assert manifest["base"]["file"] == "base.gguf"
    assert read_onnx(out / "onnx" / "model.onnx").metadata["tinylora.flavour"] == "required"


def test_a_graph_that_is_built(cli: Cli, hf: Path, tmp_path: Path) -> None:
    options = ["--format", "onnx", "--onnx-precision", "int4", "--json"]
    record = cli("export", hf, "-o", tmp_path / "out", *options).record()
    assert record["onnx"]["precision"] == "int4"
    assert record["onnx"]["graph"].startswith("onnxruntime-genai ")
    assert record["base"] is None
    assert record["fingerprints"] == [record["onnx"]["fingerprint"]]


def test_what_is_refused_leaves_no_bundle(cli: Cli, hf: Path, graph: Path, tmp_path: Path) -> None:
    arguments = ["export", hf, "-o", tmp_path / "out", "--format", "onnx", "--onnx"]
    cli(*arguments, tmp_path / "none").refused("none does not exist")
    other = onnx_models.graph(onnx_models.tiny_hf("qwen2"), "fp32")
    cli(*arguments, other).refused("away from the weight of node", "qkv_proj", "another model")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.onnx").write_bytes((graph / "model.onnx").read_bytes())
    cli(*arguments, damaged).refused("model.onnx.data")
    left = set(contents(tmp_path))
    assert left == {"damaged/", "damaged/model.onnx"}
