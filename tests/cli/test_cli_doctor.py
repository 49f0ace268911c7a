"""`doctor`: faults that are planted are found, each with the command that mends it."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge.cli import doctor
from tinylora_edge.cli.doctor import FAULT, OK


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_nothing_is_wrong_here(process: Cli, environment: dict[str, str], tmp_path: Path) -> None:
    text = process("doctor", env=environment, cwd=tmp_path).done()
    assert text.splitlines()[-1].startswith("0 faults, ")
    assert "llama.cpp (llama-cpp-python " in text
    assert "ONNX Runtime (onnxruntime " in text
    assert text.count(" loads\n") == 2
    assert "\x1b" not in text


def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planted = tmp_path / "site" / "tinylora_edge-0.1.0.dist-info"
    planted.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", "Name: tinylora-edge", "Version: 0.1.0"]
    for extra in ("gone", "llama-wheel"):
        lines.append(f'Requires-Dist: no-such-package-here>=1; extra == "{extra}"')
    (planted / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(planted.parent)
    found, ready = doctor.check_extras()
    assert (found.level, found.text) == ("note", "gone lacks no-such-package-here")
    assert found.mend.endswith("pip install 'tinylora-edge[gone]'")
    assert ready.mend.startswith("SKBUILD_WHEEL_CMAKE=false ")
    assert ready.mend.endswith("pip install --no-cache-dir 'tinylora-edge[llama-wheel]'")


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGILL)",
            "ends its process with signal 4 (Illegal instruction): it was built for another processor",
        ),
        ("import os\nos.kill(os.getpid(), 35)", "ends its process with signal 35 (Real-time signal 1)"),
        ("raise ImportError('libgomp.so.1: cannot open')", "fails: ImportError: libgomp.so.1: cannot open"),
        ("import sys\nsys.exit(3)", "fails: exit code 3"),
        ("import os\nos.write(2, b'\\xe9')\nos._exit(3)", "fails: \ufffd"),
    ],
)
def test_an_engine_that_does_not_answer(source, ending, monkeypatch, tmp_path):
    planted = tmp_path / "planted" / "onnxruntime"
    planted.mkdir(parents=True)
    (planted / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", f"{planted.parent}", prepend=os.pathsep)
    finding = doctor.check_engine("onnx")
    assert finding.level == FAULT
    assert finding.text.endswith(ending)
    package = f"onnxruntime=={version('onnxruntime')}"
    assert finding.mend.endswith(f" -m pip install --force-reinstall --no-cache-dir {package}")


def test_ready_libraries_that_fail_are_installed_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (folder := tmp_path / "site" / "llama_cpp_py_sync-1.dist-info").mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: llama-cpp-py-sync\nVersion: 1\n")
    (folder.parent / "llama_cpp.py").write_text("raise ImportError('of another llama.cpp')\n")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setenv("PYTHONPATH", f"{folder.parent}", prepend=os.pathsep)
    finding = doctor.check_engine("llama")
    assert (finding.level, finding.text.endswith("ImportError: of another llama.cpp")) == (FAULT, True)
    assert finding.mend.endswith("pip install --no-cache-dir 'tinylora-edge[llama-wheel]'")


def test_nothing_of_the_present_folder_is_run(tmp_path: Path) -> None:
    (tmp_path / "tempfile.py").write_text("raise SystemExit('it was run')\n")
    finding = doctor.check_engine("onnx")
    assert finding.level == OK, finding.text
