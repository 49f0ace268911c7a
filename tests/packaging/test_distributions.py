"""What is published: an sdist and a wheel, built twice to the same bytes, installed where nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import models
import onnx_bundles
import pytest
import venvs
from packaging.metadata import Metadata

import tinylora_edge
from tinylora_edge.exporters import ExportSettings, export_gguf

ROOT = Path(__file__).parents[2]
CONTENT = ("tinylora_edge", "exporters", "runtime", "cli", "pyproject.toml", "README.md", "LICENSE")
NAMES = {f"tinylora_edge-{tinylora_edge.__version__}{end}" for end in (".tar.gz", "-py3-none-any.whl")}

ASK = """
import sys
from tinylora_edge import MicroVector, runtime
llm = runtime.load(sys.argv[1], n_ctx=64)
vector = MicroVector.random(llm.basis, 0.5, seed=1)
llm.swap(vector)
answer = llm.create_chat_completion([{"role": "user", "content": "a"}], max_tokens=4, temperature=0)
assert answer["usage"]["completion_tokens"] > 0, answer
llm.close()
print(tinylora_edge.__file__ if (tinylora_edge := sys.modules["tinylora_edge"]) else "")
print(*sorted({"torch", "transformers", "onnx", "typer", "llama_cpp", "onnxruntime"} & set(sys.modules)))
"""


IMPORT_ALL = """
import importlib, pkgutil, tinylora_edge
names = [found.name for found in pkgutil.walk_packages(tinylora_edge.__path__, "tinylora_edge.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(tinylora_edge.__file__)
print(len(names))
"""


def build(folder: Path, number: int) -> dict[str, bytes]:
    """Both files, built from a copy whose times and modes are its own."""
    source = folder / f"source-{number}"
    for name in CONTENT:
        path = ROOT / name
        if path.is_dir():
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / name, symlinks=True, ignore=skipped)
        else:
            shutil.copy(path, source / name)
    for path in source.rglob("*.py"):
        path.chmod(0o664 if number else 0o600)
        os.utime(path, (number * 1e9, number * 1e9))
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "distributions.py"), str(folder / str(number)), str(source)],
        env=os.environ | {"SOURCE_DATE_EPOCH": "1790000000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in (folder / str(number)).iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, once a second build has given the same bytes."""
    folder = tmp_path_factory.mktemp("distributions")
    first, second = build(folder, 0), build(folder, 1)
    assert set(first) == NAMES
    assert first == second
    return folder / "0"


def test_the_sdist(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        names = {member.name.partition("/")[2] for member in members}
        data = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert data is not None
        Metadata.from_email(data.read(), validate=True)
    assert {member.mtime for member in members} == {1790000000}
    assert {member.uname for member in members} == {""}
    assert all(member.isfile() or member.isdir() for member in members)  # no link to what is not there
    assert {"LICENSE", "README.md", "pyproject.toml", "tinylora_edge/runtime/load.py"} <= names


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model for each engine."""
    folder = tmp_path_factory.mktemp("tiny")
    gguf = models.write_gguf(models.tiny_model("llama"), folder / "tiny.gguf")
    exported = export_gguf(gguf, folder / "tiny", settings=ExportSettings(groups=5)).output
    return {"llama": exported, "onnx": onnx_bundles.tiny()}


@pytest.mark.parametrize(("engine", "module"), [("llama", "llama_cpp"), ("onnx", "onnxruntime")])
def test_the_wheel_alone(
    engine: str, module: str, built: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """In an environment with an engine's packages and nothing else, a model answers."""
    (wheel,) = built.glob("*.whl")
    python = venvs.linked(tmp_path / "venv", f"tinylora-edge[{engine}]", wheel)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    installed = subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    where, loaded = venvs.run(python, "-P", "-c", ASK, bundles[engine]).splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert loaded == module
    command = subprocess.run(
        [python.with_name("tinylora-edge"), "--version"], capture_output=True, text=True, check=False
    )
    assert command.stderr.endswith('pip install "tinylora-edge[cli]"\n')


def test_everything_of_the_wheel(built: Path, tmp_path: Path) -> None:
    """With what its `all` asks for and nothing else, pip misses nothing, and every module loads."""
    (wheel,) = built.glob("*.whl")
    python = venvs.linked(tmp_path / "venv", "tinylora-edge[all]", wheel)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    # Without an index the resolver finds what is in the environment, or says what it misses.
    for command in (["install", "-q", "--no-index", f"tinylora-edge[all] @ {wheel.as_uri()}"], ["check"]):
        done = subprocess.run([*pip, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    where, number = venvs.run(python, "-P", "-c", IMPORT_ALL).splitlines()[-2:]
    assert Path(where).is_relative_to(tmp_path)
    assert int(number) > 250


def test_the_command_of_the_wheel(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    python = venvs.linked(tmp_path / "venv", "tinylora-edge[cli,llama]", wheel)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    command = subprocess.run(
        [python.with_name("tinylora-edge"), "--version"], capture_output=True, text=True, check=False
    )
    assert (command.returncode, command.stderr) == (0, "")
    assert tinylora_edge.__version__ in command.stdout
