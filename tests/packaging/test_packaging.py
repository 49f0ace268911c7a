"""The distribution: what it holds, that it runs beside one engine, and the error of a missing extra."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path

import onnx_bundles
import pytest
import venvs
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tinylora_edge import __version__
from tinylora_edge.runtime.llama import BINDINGS, FITTING

ROOT = Path(__file__).parents[2]
FOLDERS = "", "cli", "exporters", "runtime"  # links, but in the sdist, are not followed
DATA = (
    *(".LICENSE", ".bin", ".css", ".gguf", ".html", ".js", ".json", ".jsonl"),
    *(".npz", ".pub", ".svg", ".toml", ".typed"),
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
WINDOWS = """
import windows
windows.pretend()
import asyncio, json, os, signal, sys
import tinylora_edge.eval, tinylora_edge.exporters.export, tinylora_edge.runtime.onnx.model
import tinylora_edge.runtime.pool
import tinylora_edge.serve.application, tinylora_edge.serve.process, tinylora_edge.shipping.fetch
from tinylora_edge import MicroVector, Policy, runtime
from tinylora_edge.cli.app import app
from typer.testing import CliRunner
assert os.name == "nt" and not hasattr(os, "fork") and not hasattr(signal, "SIGKILL")
policy = Policy(state="policy.state")
with runtime.load(sys.argv[1], n_ctx=64, n_threads=1, policy=policy) as llm:
    basis = llm.bases.basis(numbers=13)
    frame = MicroVector.random(basis, 0.5, seed=1).to_bytes(basis)
    llm.swap(frame)
    llm.create_chat_completion([{"role": "user", "content": "a"}], max_tokens=4, temperature=0)
async def held():
    with runtime.Pool(sys.argv[1], slots=1, n_ctx=64, n_threads=1, policy=policy) as pool:
        schema = {"enum": ["a", "b"]}
        answer = await pool.chat("a", vector=frame, max_tokens=8, schema=schema)
        assert json.loads(answer.text) in ("a", "b")
asyncio.run(held())
open("v.bin", "wb").write(frame)
for words in ("doctor", "inspect v.bin", "run BUNDLE a --vector v.bin --max-tokens 2 --threads 1"):
    done = CliRunner().invoke(app, [sys.argv[1] if word == "BUNDLE" else word for word in words.split()])
    assert done.exit_code == 0, done.output
"""
ONNX = ("onnxruntime", "onnxruntime_genai")
PROGRAM = """
from tinylora_edge import MicroVector, Policy, load_bundle, runtime
llama = runtime.load("bundle", engine="llama", policy=Policy(keys=()))
reveal_type(llama.swap(MicroVector.random(load_bundle("bundle").basis(numbers=13), 0.3)))
wrong: int = llama.bases
"""


def sources() -> Iterator[tuple[Path, str]]:
    """Yield each file of the package, and its name in the wheel."""
    for folder in FOLDERS:
        for path in (ROOT / "tinylora_edge" / folder).rglob("*"):
            if path.suffix in (".py", *DATA) and "__pycache__" not in path.parts:
                yield path, path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel for every platform that is built from it, of copied sources."""
    folder = tmp_path_factory.mktemp("built")
    ignore = shutil.ignore_patterns(".?*", "out", "build", "dist", "*.egg-info", "__pycache__")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignore, symlinks=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source]
    environment = {**os.environ, "TINYLORA_EDGE_PURE": "1"}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


def test_the_wheel_holds_every_file_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        content = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert content == {name for path, name in sources() if path.is_file()}
    assert wheel.name.endswith("-py3-none-any.whl")


def test_what_is_installed_has_no_links_and_names_for_every_system(built: Path, wheel: Path) -> None:
    """Windows makes links for administrators alone, knows no case, and has names that no file may have."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
        assert [each.name for each in members if not (each.isfile() or each.isdir())] == []
    with zipfile.ZipFile(wheel) as archive:
        infos = archive.infolist()
        assert [each.filename for each in infos if stat.S_ISLNK(each.external_attr >> 16)] == []
    for names in ([each.name for each in members], [each.filename for each in infos]):
        assert len({name.lower() for name in names}) == len(names)
        parts = {part for name in names for part in name.split("/")}
        assert [part for part in parts if re.search(r'[<>:"|?*\\\x00-\x1f]|[. ]$', part)] == []
        devices = "con|prn|aux|nul|com[0-9]|lpt[0-9]"
        assert [part for part in parts if re.fullmatch(rf"({devices})(\..*)?", part, re.I)] == []
        assert max(map(len, names)) < 160  # of 259 with the folder that they are in


def test_the_wheel_says_what_it_holds_of_others(wheel: Path) -> None:
    """PEP 770: an SBOM in the folder of the metadata; CycloneDX 1.6."""
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
        (name,) = (name for name in held if ".dist-info/sboms/" in name)
        bill, records = json.loads(archive.read(name)), archive.read(name.split("/")[0] + "/RECORD").decode()
    assert f"{name},sha256=" in records
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["purl"] == f"pkg:pypi/tinylora-edge@{__version__}"
    named = re.findall(r"tinylora_edge/[\w/.-]+", str(bill["components"]))
    assert {*named} <= {*held}
    assert {*named} >= {name for name in held if name.endswith((".gguf", ".npz"))}, "weights of a model"


def test_the_version_is_one(wheel: Path) -> None:
    """In tinylora_edge/version.py; what has to repeat it has the same."""
    assert metadata_of(wheel)["Version"] == __version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    recipe = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text("utf-8"))
    latest = re.findall(r"^## \[(.+?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[0]
    assert latest == (citation["version"], str(citation["date-released"]))
    assert {citation["version"], recipe["context"]["version"]} == {__version__}


def test_conda_installs_what_pip_does(wheel: Path) -> None:
    recipe = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text("utf-8"))
    metadata = metadata_of(wheel)
    wanted = {f"python {metadata['Requires-Python']}"}
    for extra in ("", "cli", "tune"):
        for one in map(Requirement, metadata.get_all("Requires-Dist", [])):
            if one.name != "tinylora-edge" and (one.marker is None or one.marker.evaluate({"extra": extra})):
                wanted.add(f"{one.name} {one.specifier}")
    assert {*map(_spec, recipe["requirements"]["run"])} == {*map(_spec, wanted)}


def test_the_engine_is_the_one_that_was_tested(wheel: Path) -> None:
    """In the extras, where the engine is built, and in conda."""
    (tested,) = FITTING
    pinned = f"{BINDINGS}=={tested}"
    asked = [*map(Requirement, metadata_of(wheel).get_all("Requires-Dist", []))]
    extras = [str(one.marker) for one in asked if f"{one.name}{one.specifier}" == pinned]
    assert extras == ['extra == "llama"', 'extra == "llama-wheel"']
    recipe = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text("utf-8"))
    assert recipe["requirements"]["run_constraints"][0].replace(" ", "") == pinned
    engine = ROOT / ".ci" / "engine"
    assert f'engine="{pinned}"' in (engine / "install.sh").read_text("utf-8")
    assert f"\n{pinned} \\\n" in (engine / "wheel.txt").read_text("utf-8")


def _spec(requirement: str) -> tuple[str, SpecifierSet]:
    name, _, versions = requirement.partition(" ")
    return name, SpecifierSet(versions)


def test_it_runs_without_what_windows_lacks(tiny_bundle: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", WINDOWS, str(tiny_bundle)]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_of_a_platform_has_the_callback_too(built: Path, wheel: Path) -> None:
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("there is no C compiler")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", built / "own"]
    subprocess.run([*command, built / "source"], cwd=built, check=True, capture_output=True)
    (own,) = (built / "own").glob("*-cp311-abi3-*.whl")
    contents = [
        {name for name in zipfile.ZipFile(each).namelist() if ".dist-info/" not in name}
        for each in (own, wheel)
    ]
    (callback,) = contents[0] - contents[1]
    assert callback.startswith("tinylora_edge/runtime/llama/_columns.")
    assert contents[1] < contents[0]


def test_the_tests_run_from_the_sdist(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    shutil.unpack_archive(sdist, built / "sdist")
    (unpacked,) = (built / "sdist").iterdir()
    for path in (ROOT / "tests").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert (unpacked / path.relative_to(ROOT)).is_file()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["tests/wire", "tests/test_layers.py"]
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_links_of_the_readme_lead_to_files_of_the_repository(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    (repository,) = (one.split(", ")[1] for one in metadata.get_all("Project-URL", []) if "Repository" in one)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", metadata.get_payload())
    assert any(image for image, _ in links)
    for image, link in links:
        if link.startswith(repository):
            kind, _, path = link.removeprefix(f"{repository}/").split("/", 2)
            assert kind == ("raw" if image else "blob")
            assert (ROOT / path).exists(), path
        else:
            assert link.startswith("https://"), link


def test_a_clone_without_links_says_so(tmp_path: Path) -> None:
    (tmp_path / "tinylora_edge").mkdir()
    for path in (ROOT / "tinylora_edge").iterdir():
        if path.name not in FOLDERS:
            (tmp_path / "tinylora_edge" / path.name).symlink_to(path)
    (tmp_path / "tinylora_edge/__init__.py").unlink()
    shutil.copy(ROOT / "tinylora_edge/__init__.py", tmp_path / "tinylora_edge")
    (tmp_path / "tinylora_edge/cli").write_text("../cli")
    shutil.copy(ROOT / "setup.py", tmp_path)
    for words in (["-c", "import tinylora_edge"], ["setup.py", "--version"]):
        command, alone = [sys.executable, *words], {**os.environ, "PYTHONPATH": ""}
        done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
        assert done.returncode == 1
        assert "git clone -c core.symlinks=true" in done.stderr.splitlines()[-1]


def test_a_device_needs_numpy_and_gguf(wheel: Path) -> None:
    requirements = map(Requirement, metadata_of(wheel).get_all("Requires-Dist", []))
    assert {one.name for one in requirements if one.marker is None} == {"numpy", "gguf"}


@pytest.mark.parametrize("extra", ["llama", "onnx", "tune", "cli", "export", "serve", "sign", "ship"])
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
def test_a_model_answers_beside_one_engine_alone(engine, module, wheel, tiny_bundle, tmp_path):
    bundle = tiny_bundle if engine == "llama" else onnx_bundles.tiny()
    python = venvs.linked(tmp_path / "venv", f"tinylora-edge[{engine}]", wheel)
    assert venvs.run(python, "-P", "-c", ASK, bundle).split() == [module]
    version = subprocess.run([python.with_name("tinylora-edge"), "--version"], capture_output=True, text=True)
    assert version.stderr.endswith('pip install "tinylora-edge[cli]"\n')
    # Which finds the package that is installed, on no index.
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--dry-run"]
    subprocess.run([*pip, f"tinylora-edge[{engine}]"], check=True)


def test_with_all_extras_every_module_loads(wheel: Path, tmp_path: Path) -> None:
    python = venvs.linked(tmp_path / "venv", "tinylora-edge[all]", wheel)
    venvs.run(python, "-P", "-c", IMPORT_ALL)


def test_the_package_has_types(wheel: Path, tmp_path: Path) -> None:
    python = venvs.linked(tmp_path / "venv", "tinylora-edge", wheel)
    (tmp_path / "user.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={python}", "user.py"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert 'Revealed type is "tinylora_edge.vector.AdmittedVector"' in output
    assert output.count(": error:") == 1, output
    assert 'has type "Bases", variable has type "int"' in output


@pytest.mark.parametrize(
    ("package", "code", "extra"),
    [
        ("llama_cpp", "from tinylora_edge import runtime; runtime.load(sys.argv[1])", "llama"),
        ("cryptography", "from tinylora_edge import Ed25519Signer; Ed25519Signer(bytes(32))", "sign"),
        ("onnx", "from tinylora_edge.exporters import export_onnx; export_onnx('m', 'b')", "onnx-export"),
        *((name, "from tinylora_edge import runtime; runtime.TinyLoraOnnx", "onnx") for name in ONNX),
        ("typer", "from tinylora_edge.cli import main; main()", "cli"),
    ],
)
def test_a_missing_package_is_answered_with_the_pip_command(package, code, extra, smollm2_bundle, tmp_path):
    script = f"import sys; sys.modules[{package!r}] = None\n{code}"
    command = [sys.executable, "-c", script, str(smollm2_bundle)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith(f'pip install "tinylora-edge[{extra}]"\n')
    assert list(tmp_path.iterdir()) == []
