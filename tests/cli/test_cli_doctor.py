"""`doctor`: faults that are planted are found, each with the command that mends it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge.cli import doctor
from tinylora_edge.cli.doctor import FAULT, OK, Finding


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bundle(smollm2_bundle: Path, tmp_path: Path) -> Path:
    """A copy of a bundle, the model linked, to be damaged."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in smollm2_bundle.iterdir():
        if path.name == "base.gguf":
            (copy / path.name).symlink_to(path)
        else:
            shutil.copy(path, copy)
    return copy


@pytest.fixture
def fault(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Run all checks but the engines', among which has to be one fault; return what it says and mends it."""
    monkeypatch.setattr(doctor, "check_engine", lambda name: Finding("engine", OK, name))

    def run(*args: object) -> tuple[str, str]:
        done = cli("doctor", *args, "--json")
        assert done.code == 1, (done.stdout_bytes, done.stderr)
        record = json.loads(done.stdout_bytes)
        (found,) = [one for one in record["findings"] if one["level"] == FAULT]
        assert record["faults"] == 1
        return found["text"], found["mend"]

    return run


def test_nothing_is_wrong_here(process: Cli, environment: dict[str, str], bundle: Path) -> None:
    text = process("doctor", bundle, env=environment, cwd=bundle).done()
    assert text.splitlines()[-1].startswith("0 faults, ")
    assert "llama.cpp (llama-cpp-python " in text
    assert "ONNX Runtime (onnxruntime " in text
    assert text.count(" computes\n") == 2
    assert "which the basis lists" in text
    assert "it is not signed" in text
    assert "\x1b" not in text


def test_a_package_that_is_too_old(
    fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planted = tmp_path / "site" / "typer-0.1.dist-info"
    planted.mkdir(parents=True)
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: typer\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(planted.parent)
    text, mend = fault()
    assert text.startswith("typer is 0.1, and 0.")
    assert shlex.split(mend)[1:-1] == ["-m", "pip", "install", "--upgrade"]


def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A distribution that is found first, and needs what there is not."""
    planted = tmp_path / "site" / "tinylora_edge-0.1.0.dist-info"
    planted.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", "Name: tinylora-edge", "Version: 0.1.0", "Provides-Extra: gone"]
    lines.append('Requires-Dist: no-such-package-here>=1; extra == "gone"')
    (planted / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(planted.parent)
    (found,) = doctor.check_extras()
    assert (found.level, found.text) == ("note", "gone lacks no-such-package-here")
    assert found.mend.endswith("pip install 'tinylora-edge[gone]'")


def test_what_extras_bring() -> None:
    lines = [
        "numpy>=1.26",
        'llama-cpp-python>=0.3.36; extra == "llama"',
        "typer>=0.16; extra == 'cli'",
        'tinylora-edge[cli,llama]; extra == "both"',
    ]
    always = {"numpy": "1.26"}
    assert doctor.needed(lines, "cli") == always | {"typer": "0.16"}
    assert doctor.needed(lines, "both") == always | {"typer": "0.16", "llama-cpp-python": "0.3.36"}
    assert set(doctor.needed(requires("tinylora-edge") or [], "export")) >= {"typer", "huggingface-hub"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGILL)",
            "ends its process with SIGILL: it was built for another processor",
        ),
        ("raise ImportError('libgomp.so.1: cannot open')", "fails: ImportError: libgomp.so.1: cannot open"),
        ("import sys\nsys.exit(3)", "fails: exit code 3"),
    ],
)
def test_an_engine_that_does_not_answer(
    source: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planted = tmp_path / "planted" / "onnxruntime"
    planted.mkdir(parents=True)
    (planted / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", f"{planted.parent}", prepend=os.pathsep)
    finding = doctor.check_engine("onnx")
    assert finding.level == FAULT
    assert finding.text.endswith(said)
    assert shlex.split(finding.mend)[1:] == [
        *("-m", "pip", "install", "--force-reinstall", "--no-cache-dir", "onnxruntime")
    ]


def test_nothing_of_the_present_folder_is_run(tmp_path: Path) -> None:
    """One that was downloaded may hold a module by the name of one of Python's."""
    (tmp_path / "tempfile.py").write_text("raise SystemExit('it was run')\n")
    finding = doctor.check_engine("onnx")
    assert finding.level == OK, finding.text


def test_a_machine_without_an_engine(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_engine", lambda name: Finding("engine", "note", "none"))
    done = cli("doctor")
    assert done.code == 1
    assert b"no engine is installed" in done.stdout_bytes


def test_keys_that_others_can_read(
    fault: Callable[..., tuple[str, str]], cli: Cli, tmp_path: Path, bundle: Path
) -> None:
    cli("keygen", tmp_path / "fleet.key").done()
    assert cli("doctor", "--json").record()["faults"] == 0
    (tmp_path / "fleet.key").chmod(0o644)
    text, mend = fault()
    assert "fleet.key is a secret key, and others on this machine can read it" in text
    subprocess.run(shlex.split(mend), check=True)
    (bundle / "device.mac").write_text("0f" * 32)
    (bundle / "device.mac").chmod(0o640)
    text, mend = fault(bundle)
    assert mend == f"chmod 600 {bundle / 'device.mac'}"


def test_what_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"-----BEGIN PRIVATE KEY-----" + bytes(1 << 20))
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself").symlink_to("itself")
    (found,) = doctor.check_keys(tmp_path, tmp_path / "gone")
    assert (found.level, found.text) == (OK, "no secret key that others can read (0 looked at)")


def test_a_damaged_basis(fault: Callable[..., tuple[str, str]], bundle: Path) -> None:
    path = bundle / "basis.gguf"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    text, mend = fault(bundle)
    assert str(path) in text
    assert mend == "tinylora-edge export MODEL -o BUNDLE"


def test_a_base_that_is_missing(fault: Callable[..., tuple[str, str]], bundle: Path) -> None:
    (bundle / "base.gguf").unlink()
    text, mend = fault(bundle)
    assert text.startswith(f"{bundle / 'base.gguf'} does not exist")
    assert mend == "tinylora-edge export MODEL -o BUNDLE"


def test_a_base_of_something_else(fault: Callable[..., tuple[str, str]], bundle: Path) -> None:
    (bundle / "base.gguf").unlink()
    shutil.copy(bundle / "basis.gguf", bundle / "base.gguf")
    text, mend = fault(bundle)
    assert str(bundle / "base.gguf") in text
    assert mend == f"tinylora-edge export {bundle} --add-base FILE"


def test_a_manifest_of_another_export(fault: Callable[..., tuple[str, str]], bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["basis"]["digest"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    text, mend = fault(bundle)
    assert "states digest 0000000000000000..., but the basis has " in text
    assert mend == "tinylora-edge export MODEL -o BUNDLE"
