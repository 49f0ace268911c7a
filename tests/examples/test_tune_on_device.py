"""The example that tunes on a device, run where there is nothing but what a device has: no PyTorch."""

from __future__ import annotations

from pathlib import Path

import venvs

ROOT = Path(__file__).parents[2]


def test_a_model_learns_without_torch(smollm2_bundle: Path, tmp_path: Path) -> None:
    assert not {"torch", "transformers", "onnx", "scipy"} & set(venvs.closure("tinylora-edge[llama]"))
    device = venvs.linked(tmp_path / "venv", "tinylora-edge[llama]")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "tinylora_edge").symlink_to(ROOT / "tinylora_edge")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in smollm2_bundle.iterdir():
        (bundle / path.name).symlink_to(path)
    said = venvs.run(device, ROOT / "examples" / "tune_on_device.py", bundle, "7ktokens")
    assert "PyTorch is not installed here." in said
    assert "step 1: reward" in said
    assert said.count("before: ") == said.count("after: ") == 6
    assert (bundle / "mine.bin").stat().st_size == 63
    assert not (bundle / "mine.state").exists()
