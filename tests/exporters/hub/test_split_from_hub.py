"""A split GGUF from a hub: in the cache its parts are links to files that are named by their hashes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import hub_server
import huggingface_hub
import models
import pytest

from tinylora_edge import Bundle
from tinylora_edge.exporters import ExportSettings, ResolvedModel, export_gguf, resolve
from tinylora_edge.exporters.hub.cache import Hub

SETTINGS = ExportSettings(groups=2)


@pytest.fixture
def found(llama_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ResolvedModel]:
    """The small Llama in parts, as it comes from a hub."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    source = tmp_path / "source"
    source.mkdir()
    parts = models.split_gguf(llama_gguf, source, 6, "tiny-F32")
    assert len(parts) > 2
    with hub_server.serve() as server:
        server.add("org/tiny-GGUF", {path.name: path for path in parts})
        yield resolve("org/tiny-GGUF", hub=Hub(endpoint=server.url, cache=tmp_path / "cache"), catalog={})


def test_all_parts_make_one_bundle(found: ResolvedModel, llama_gguf: Path, tmp_path: Path) -> None:
    whole = export_gguf(llama_gguf, tmp_path / "whole", settings=SETTINGS)
    report = export_gguf(found.model, tmp_path / "b", settings=SETTINGS, provenance=found.provenance)
    assert report.basis.digest == whole.basis.digest
    assert Bundle.find(tmp_path / "b").check_base() == report.basis.base_fingerprints[0]
    source = json.loads((tmp_path / "b" / "manifest.json").read_text())["source"]
    assert len(source["base"]["files"]) == len(list((tmp_path / "b").glob("base-*.gguf"))) > 2
