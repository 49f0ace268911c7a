"""The distribution: what the wheel holds, that it runs beside one engine, and what a missing extra says."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

import models
import onnx_bundles
import pytest
import venvs
from packaging.requirements import Requirement

from tinylora_edge.exporters import export_gguf

ROOT = Path(__file__).parents[2]
FOLDERS = {  # folder -> where the wheel has it
    "tinylora_edge": "tinylora_edge",
    **{name: f"tinylora_edge/{name}" for name in ("exporters", "runtime", "cli")},
}
DATA = (
    *(
        ".LICENSE",
        ".bin",
        ".css",
        ".gguf",
        ".html",
        ".js",
        ".json",
        ".jsonl",
        ".npz",
        ".pub",
        ".svg",
        ".toml",
    ),
    ".typed",
)
ASK = """
import sys
from tinylora_edge import MicroVector, runtime
llm = runtime.load(sys.argv[1], n_ctx=64)
llm.swap(MicroVector.random(llm.bases.basis(rank=2), 0.5, seed=1))
answer = llm.create_chat_completion([{"role": "user", "content": "a"}], max_tokens=4, temperature=0)
assert answer["usage"]["completion_tokens"] > 0, answer
llm.close()
print(*sorted({"torch", "transformers", "onnx", "typer", "llama_cpp", "onnxruntime"} & set(sys.modules)))
"""
IMPORT_ALL = """
import importlib, pkgutil, tinylora_edge
for found in pkgutil.walk_packages(tinylora_edge.__path__, "tinylora_edge."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""
PROGRAM = """
from tinylora_edge import MicroVector, Policy, load_bundle, runtime
llama = runtime.load("bundle", engine="llama", policy=Policy(keys=()))
reveal_type(llama.swap(MicroVector.random(load_bundle("bundle").basis(numbers=13), 0.3)))
wrong: int = llama.bases
"""


def sources() -> Iterator[tuple[Path, str]]:
    """Yield each file of the package, and its name in the wheel."""
    for folder, place in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", *DATA) and "__pycache__" not in path.parts:
                yield path, f"{place}/{path.relative_to(ROOT / folder).as_posix()}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools would reuse an old `build` beside the sources."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore, symlinks=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    words = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(output), str(source)]
    subprocess.run([*pip, *words], check=True)
    (built,) = output.iterdir()
    return built


def requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def test_the_wheel_holds_every_file_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        content = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert content == {name for path, name in sources() if path.is_file()}
    assert wheel.name.endswith("-py3-none-any.whl")


def test_a_device_needs_numpy_and_gguf(wheel: Path) -> None:
    assert {one.name for one in requirements(wheel) if one.marker is None} == {"numpy", "gguf"}


@pytest.mark.parametrize("extra", ["llama", "onnx", "tune", "cli", "export", "serve", "sign", "ship", "try"])
def test_what_a_device_installs_brings_no_torch(extra: str, wheel: Path) -> None:
    assert "torch" not in venvs.closure(f"tinylora-edge[{extra}]", wheel)


def test_every_extra_that_an_error_names_brings_the_package(wheel: Path) -> None:
    found = set()
    for path, _ in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))) if path.suffix == ".py" else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("MissingExtraError"):
                _, package, extra = node.args
                if not isinstance(extra, ast.Constant):
                    continue
                name = extra.value
                brought = venvs.closure(f"tinylora-edge[{name}]", wheel)
                assert len(brought) > 3, f"{path}: there is no extra {name}"
                if isinstance(package, ast.Constant):
                    assert package.value in brought, f"{path}: [{name}] does not bring {package.value}"
                found.add(name)
    assert found >= {"llama", "cli", "sign", "onnx-export"}


@pytest.mark.parametrize(("engine", "module"), [("llama", "llama_cpp"), ("onnx", "onnxruntime")])
def test_a_model_answers_beside_one_engine_alone(
    engine: str, module: str, wheel: Path, tmp_path: Path
) -> None:
    if engine == "llama":
        gguf = models.write_gguf(models.tiny_model("llama"), tmp_path / "tiny.gguf")
        bundle = export_gguf(gguf, tmp_path / "tiny").output
    else:
        bundle = onnx_bundles.tiny()
    python = venvs.linked(tmp_path / "venv", f"tinylora-edge[{engine}]", wheel)
    venvs.install(python, wheel)
    assert venvs.run(python, "-P", "-c", ASK, bundle).split() == [module]
    told = subprocess.run([python.with_name("tinylora-edge"), "--version"], capture_output=True, text=True)
    assert told.stderr.endswith('pip install "tinylora-edge[cli]"\n')


def test_with_all_extras_every_module_loads(wheel: Path, tmp_path: Path) -> None:
    python = venvs.linked(tmp_path / "venv", "tinylora-edge[all]", wheel)
    venvs.install(python, wheel)
    venvs.run(python, "-P", "-c", IMPORT_ALL)


def test_the_package_has_types(wheel: Path, tmp_path: Path) -> None:
    python = venvs.linked(tmp_path / "venv", "tinylora-edge", wheel)
    venvs.install(python, wheel)
    (tmp_path / "user.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={python}", "user.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert 'Revealed type is "tinylora_edge.vector.MicroVector"' in said
    assert said.count(": error:") == 1, said
    assert 'has type "Bases", variable has type "int"' in said


@pytest.mark.parametrize(
    ("package", "code", "extra"),
    [
        ("llama_cpp", "from tinylora_edge import runtime; runtime.load(sys.argv[1])", "llama"),
        ("cryptography", "from tinylora_edge import Ed25519Signer; Ed25519Signer(bytes(32))", "sign"),
        ("onnx", "from tinylora_edge.exporters import export_onnx; export_onnx('m', 'b')", "onnx-export"),
        ("typer", "from tinylora_edge.cli import main; main()", "cli"),
    ],
)
def test_a_missing_package_is_answered_with_the_pip_command(
    package: str, code: str, extra: str, smollm2_bundle: Path, tmp_path: Path
) -> None:
    script = f"import sys; sys.modules[{package!r}] = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script, str(smollm2_bundle)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.endswith(f'pip install "tinylora-edge[{extra}]"\n')
    assert list(tmp_path.iterdir()) == []
