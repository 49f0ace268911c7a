"""`doctor`: faults that are planted are found, each with the command that mends it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge.cli import doctor
from tinylora_edge.cli.doctor import FAULT, OK, Finding


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


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


def test_nothing_is_wrong_here(process: Cli, environment: dict[str, str], tmp_path: Path) -> None:
    text = process("doctor", env=environment, cwd=tmp_path).done()
    assert text.splitlines()[-1].startswith("0 faults, ")
    assert "llama.cpp (llama-cpp-python " in text
    assert "ONNX Runtime (onnxruntime " in text
    assert text.count(" computes\n") == 2
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
