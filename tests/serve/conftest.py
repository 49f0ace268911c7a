"""Fixtures of the server's tests."""

from __future__ import annotations

from pathlib import Path

import models
import pytest

from tinylora_edge.exporters import ExportSettings, export_gguf


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a random Llama of 2 blocks with a vocabulary of bytes."""
    folder = tmp_path_factory.mktemp("served")
    gguf = models.write_gguf(models.tiny_model("llama"), folder / "tiny.gguf")
    return export_gguf(gguf, folder / "tiny", settings=ExportSettings(groups=5)).output
