"""Faces: what the packages offer is listed and documented, importing them is cheap, and reports are short."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

from tinylora_edge import exporters
from tinylora_edge.exporters import ExportSettings, export_gguf, export_part, find, hub, onnx

HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "huggingface_hub",
    "llama_cpp",
    "onnxruntime",
    "safetensors",
    "peft",
}
WIDTH = 2 * 120  # two lines


@pytest.mark.parametrize("face", [exporters, hub, onnx], ids=lambda face: face.__name__)
def test_what_is_public_is_listed_and_documented(face: ModuleType) -> None:
    assert face.__all__ == sorted(face.__all__)
    public = {n for n, value in vars(face).items() if not n.startswith("_") and not inspect.ismodule(value)}
    assert public == set(face.__all__)
    for name in face.__all__:
        value = getattr(face, name)
        if inspect.isclass(value) or inspect.isfunction(value):  # others are names of types
            assert value.__doc__, name
    code = f"import {face.__name__}, sys; print(*{HEAVY!r} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


def test_reports_print_on_two_lines(llama_gguf, tmp_path):
    settings = ExportSettings(groups=2)
    report = export_gguf(llama_gguf, tmp_path / "bundle", settings=settings)
    part = export_part(llama_gguf, tmp_path / "parts", (1, 2), settings=settings)
    for shown in (report, part):
        line = repr(shown).replace(str(tmp_path), "")
        assert len(line) <= WIDTH, line
        assert "\n" not in line
    assert report.basis.id in repr(report)
    report.quality.unconverged += report.basis.modules * 100
    assert len(repr(report.quality)) <= WIDTH
    assert "1400 modules unconverged" in repr(report.quality)
    assert str(llama_gguf) in repr(find(llama_gguf))
