"""Seconds of many users at one server; the long form is `make soak-serve`."""

from __future__ import annotations

from pathlib import Path

import models
import onnx_bundles
import pytest
from users import soak

from tinylora_edge.exporters import ExportSettings, export_gguf


@pytest.fixture(params=["llama", "onnx"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def bundle(engine: str, tmp_path: Path) -> Path:
    if engine == "onnx":
        return onnx_bundles.tiny()
    base = models.write_gguf(models.tiny_model("llama"), tmp_path / "tiny.gguf")
    return export_gguf(base, tmp_path / "bundle", settings=ExportSettings(groups=5)).output


def test_everybody_gets_the_tokens_that_he_gets_alone(engine: str, bundle: Path, tmp_path: Path) -> None:
    found = soak(bundle, engine, tmp_path, users=8, requests=32, norm=1.0, rounds=2)
    assert found.wrong == []
    assert found.requests == 64, "two rounds, and two that warm it up"
    assert min(found.distinct) > 3, "the vectors say nothing"
