"""Fixtures of the exporter's tests: small random models in torch, as GGUF and as Hugging Face directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
import pytest

from tinylora_edge import runtime
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.runtime import TinyLoraLlama

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPTIONS: dict[str, Any] = {
    "n_ctx": 256,
    "n_threads": 1,
    "n_threads_batch": 1,
    "logits_all": True,
    "type_k": 0,  # F32
    "type_v": 0,
}


@pytest.fixture(scope="session")
def tiny_model() -> PreTrainedModel:
    """The model of `tiny_gguf`. Never change it: see `models.merged`."""
    return models.tiny_model("llama")


@pytest.fixture
def write(tiny_model: PreTrainedModel, tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny Llama as a GGUF, with options of `models.write_gguf`."""
    return lambda **options: models.write_gguf(tiny_model, tmp_path / "model.gguf", **options)


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., Exception]:
    """Check that an export is refused in one line, and that nothing is written; return the error."""

    def check(error: Any, match: str, model: Path, base: Path | None = None, **settings: Any) -> Exception:
        parent = tmp_path / "parent"
        parent.mkdir()
        with pytest.raises(error, match=match) as caught:
            export_gguf(model, parent / "bundle", base=base, settings=ExportSettings(**settings))
        assert list(parent.iterdir()) == []
        assert "\n" not in str(caught.value)
        return caught.value

    return check


@pytest.fixture
def load() -> Callable[..., TinyLoraLlama]:
    return lambda base, vector=None, **options: runtime.load(base, vector, **{**OPTIONS, **options})
