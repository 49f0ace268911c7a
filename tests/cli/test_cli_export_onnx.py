"""`export --format onnx|both`: what it writes and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_bundles
import onnx_models
import pytest
from invocation import Cli

from tinylora_edge import load_bundle


@pytest.fixture(scope="session")
def hf() -> Path:
    return onnx_models.tiny_hf("llama")


def test_both_from_a_gguf_as_json(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--format", "both", "--onnx-input", "required"]
    record = cli("export", onnx_bundles.both() / "base.gguf", "-o", out, *options, "--json").record()

    found = load_bundle(out)
    assert record["fingerprints"] == [found.check_base(), found.check_onnx()]
    onnx = record["onnx"]
    assert onnx["fingerprint"] == found.check_onnx()
    assert (onnx["precision"], onnx["flavour"]) == ("fp32", "required")
    manifest = json.loads((out / "manifest.json").read_text())
    assert onnx["answers"] == manifest["onnx"]["answers"]
    assert onnx["answers"]["prompts"] == 16
    assert manifest["onnx"]["flavour"] == "required"
    assert manifest["base"]["file"] == "base.gguf"


def test_a_graph_that_is_built(cli: Cli, hf: Path, tmp_path: Path) -> None:
    options = ["--format", "onnx", "--onnx-precision", "int4", "--json"]
    record = cli("export", hf, "-o", tmp_path / "out", *options).record()
    assert record["onnx"]["precision"] == "int4"
    assert record["onnx"]["graph"].startswith("onnxruntime-genai ")
    assert record["base"] is None
    assert record["fingerprints"] == [record["onnx"]["fingerprint"]]
