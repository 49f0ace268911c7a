"""Fixtures of the exporter's tests: small random models in torch, as GGUF and as Hugging Face directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
import pytest

from tinylora_edge import runtime
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
def tiny_models() -> dict[str, PreTrainedModel]:
    """A small random model of each architecture, by name. Never change one: see `models.merged`."""
    return {architecture: models.tiny_model(architecture) for architecture in models.ARCHITECTURES}


@pytest.fixture(scope="session")
def tiny_ggufs(tiny_models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny-gguf")
    return {name: models.write_gguf(model, root / f"{name}.gguf") for name, model in tiny_models.items()}


@pytest.fixture(scope="session")
def llama_gguf(tiny_ggufs: dict[str, Path]) -> Path:
    return tiny_ggufs["llama"]


@pytest.fixture
def write(tiny_models: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny Llama as a GGUF, with options of `models.write_gguf`."""
    return lambda **options: models.write_gguf(tiny_models["llama"], tmp_path / "model.gguf", **options)


@pytest.fixture
def load() -> Callable[..., TinyLoraLlama]:
    return lambda base, vector=None, **options: runtime.load(base, vector, **{**OPTIONS, **options})
