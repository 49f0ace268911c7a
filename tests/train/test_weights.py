"""The model that learns is read from a GGUF file without reading it over and over."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from tinylora_edge.train.model import load_model


def test_transformers_asks_these_names(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the block would change nothing, silently: then transformers reads otherwise, and it can go."""
    made: list[str] = []
    reader = gguf.GGUFReader

    class Counted(reader):  # type: ignore[valid-type, misc]
        def __init__(self, path: str) -> None:
            made.append(Path(path).name)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    load_model(smollm2_gguf, "fp32")
    assert made == [smollm2_gguf.name]
