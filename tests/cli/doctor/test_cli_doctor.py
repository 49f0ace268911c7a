"""`doctor`: faults that are planted are found, each with the command that mends it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge.cli.doctor import engines, installation, machine, processor
from tinylora_edge.cli.doctor.finding import FAULT, NOTE, OK
from tinylora_edge.cli.doctor.tiny_model import onnx_product
from tinylora_edge.runtime import libraries

CHECKS = ("python", "extra", "engine", "processor", "threads", "machine", "hub", "keys", "bundle")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what Linux shows in its files")


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


def test_nothing_is_wrong_here(process: Cli, environment: dict[str, str], bundle: Path) -> None:
    calm = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = process("doctor", bundle, env=environment | calm, cwd=bundle)
    text = done.done()
    assert text.splitlines()[-1].startswith("0 faults, ")
    assert "llama.cpp (llama-cpp-python " in text
    assert "ONNX Runtime (onnxruntime " in text
    assert text.count(" answers on a tiny model in ") == 2
    assert "llama.cpp uses " in text
    assert "how OpenMP's threads wait was set: OMP_WAIT_POLICY=PASSIVE" in text
    assert "which the basis lists" in text
    assert "\x1b" not in text


# Ten faults, and more.


@pytest.mark.parametrize("number", ["all", "²", "0"])
def test_a_number_of_threads_that_is_none(
    number: str, fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    text, mend = fault("threads")
    assert f"{number!r}, which is no number" in text
    assert mend == "unset OMP_NUM_THREADS"


def test_a_wait_policy_that_openmp_does_not_know(
    fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "SLEEP")
    text, mend = fault("threads")
    assert "OMP_WAIT_POLICY is 'SLEEP'" in text
    assert mend == "export OMP_WAIT_POLICY=PASSIVE"


def test_a_package_that_is_too_old(
    fault: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planted = tmp_path / "site" / "typer-0.1.dist-info"
    planted.mkdir(parents=True)
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: typer\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(planted.parent)
    text, mend = fault("extra")
    assert text == "typer is 0.1, and 0.18 or later is needed"
    assert shlex.split(mend)[1:] == ["-m", "pip", "install", "--upgrade", "typer>=0.18"]


@pytest.mark.parametrize(
    ("source", "words", "said"),
    [
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGILL)",
            "ends its process with SIGILL",
            "processor",
        ),
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", "fails", "libgomp.so.1"),
        ("import sys\nsys.exit(3)", "fails on a tiny model", "exit code 3"),
    ],
)
def test_an_engine_that_does_not_answer(
    source: str,
    words: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    planted = tmp_path / "planted" / "onnxruntime"
    planted.mkdir(parents=True)
    (planted / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", f"{planted.parent}")
    finding, _ = engines.probed("onnx")
    assert finding.level == FAULT
    assert words in finding.text
    assert said in finding.text
    assert shlex.split(finding.mend)[1:] == [
        *("-m", "pip", "install", "--force-reinstall", "--no-cache-dir", "onnxruntime")
    ]


def test_nothing_of_the_present_folder_is_run(tmp_path: Path) -> None:
    """One that was downloaded may hold a module by the name of one of Python's."""
    (tmp_path / "tempfile.py").write_text("raise SystemExit('it was run')\n")
    finding, _ = engines.probed("onnx")
    assert finding.level == OK, finding.text


def test_a_damaged_basis(fault: Callable[..., tuple[str, str]], bundle: Path) -> None:
    path = bundle / "basis.gguf"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    text, mend = fault("bundle", bundle)
    assert str(path) in text
    assert mend == "tinylora-edge export MODEL -o BUNDLE"


def test_a_base_that_is_missing(fault: Callable[..., tuple[str, str]], bundle: Path) -> None:
    (bundle / "base.gguf").unlink()
    text, mend = fault("bundle", bundle)
    assert text == f"{bundle / 'base.gguf'} does not exist"
    assert mend == "tinylora-edge export MODEL -o BUNDLE"


def test_a_base_of_something_else(fault: Callable[..., tuple[str, str]], bundle: Path) -> None:
    (bundle / "base.gguf").unlink()
    shutil.copy(bundle / "basis.gguf", bundle / "base.gguf")
    text, mend = fault("bundle", bundle)
    assert str(bundle / "base.gguf") in text
    assert mend == f"tinylora-edge export {bundle} --add-base FILE"


def test_a_manifest_of_another_export(fault: Callable[..., tuple[str, str]], bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["basis"]["digest"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    text, mend = fault("bundle", bundle)
    assert "states digest 0000000000000000..., but the basis has " in text
    assert mend == "tinylora-edge export MODEL -o BUNDLE"


# What is no fault, and the parts.


def test_instruction_sets() -> None:
    system = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | AVX512 = 0 | FMA = 1 | OPENMP = 1 | REPACK = 1 | "
    build = processor.used(system)
    assert build == {"SSE3", "AVX", "AVX2", "FMA"}
    same = {"pni", "avx", "avx2", "fma"}
    assert processor.compare(build, same).level == OK
    slower = processor.compare(build, same | {"avx512f", "avx512_vnni", "sse4_2"})
    assert slower.level == NOTE
    assert "the processor also has AVX512, AVX512_VNNI" in slower.text
    assert slower.mend.startswith("CMAKE_ARGS=-DGGML_NATIVE=ON ")
    crash = processor.compare(build, {"pni", "avx"})
    assert crash.level == FAULT
    assert "was built for AVX2, FMA, which this processor lacks" in crash.text


@LINUX
def test_what_this_processor_can_do() -> None:
    assert processor.flags() & {"pni", "asimd"}


def test_ready_made_libraries_on_another_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is said before they are loaded, with the command that builds them here."""
    folder = tmp_path / "site" / "llama_cpp_py_sync"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setenv(libraries.VARIABLE, str(folder))
    monkeypatch.setattr(libraries.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "flags", lambda: {"pni", "avx", "avx2"})
    (found,) = processor.check("")
    assert found.level == FAULT
    assert "need F16C, FMA, BMI2, which this processor lacks" in found.text
    assert "--no-binary llama-cpp-python" in found.mend
    monkeypatch.delenv(libraries.VARIABLE)
    assert list(processor.check("")) == []


def test_quotas_of_control_groups(tmp_path: Path) -> None:
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    assert machine.cpu_quota(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.cpu_quota(tmp_path) == 1.5


def test_what_extras_bring() -> None:
    lines = [
        "numpy>=1.26",
        'llama-cpp-python>=0.3.36; extra == "llama"',
        "typer>=0.16; extra == 'cli'",
        "rich>=13; extra == 'cli'",
        'tinylora-edge[cli,llama]; extra == "both"',
    ]
    always = {"numpy": "1.26"}
    assert installation.needed(lines, "cli") == always | {"typer": "0.16", "rich": "13"}
    both = {"typer": "0.16", "rich": "13", "llama-cpp-python": "0.3.36"}
    assert installation.needed(lines, "both") == always | both
    assert set(installation.needed(requires("tinylora-edge") or [], "export")) >= {"typer", "huggingface-hub"}


def test_an_extra_that_is_not_installed(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A distribution that is found first, and needs what there is not."""
    planted = tmp_path / "site" / "tinylora_edge-0.1.0.dist-info"
    planted.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", "Name: tinylora-edge", "Version: 0.1.0", "Provides-Extra: gone"]
    lines.append('Requires-Dist: no-such-package-here>=1; extra == "gone"')
    (planted / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(planted.parent)
    done = cli("doctor", "--check", "extra").done()
    assert "note  extra      gone lacks no-such-package-here" in done
    assert "pip install 'tinylora-edge[gone]'" in done


def test_more_threads_than_cores_are_a_note(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp and ONNX Runtime do not read the number; PyTorch does, where it was built without MKL."""
    monkeypatch.setenv("OMP_NUM_THREADS", "9999")
    text = cli("doctor", "--check", "threads").done()
    assert "note  threads    OMP_NUM_THREADS is 9999, on " in text
    assert "--threads N" in text
    assert "$ export OMP_NUM_THREADS=" in text


def test_a_quota_is_met_by_what_engines_read(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    text = cli("doctor", "--check", "machine").done()
    assert "a quota grants 0.5 of them" in text
    assert "$ tinylora-edge run BUNDLE PROMPT --threads 1" in text
    assert "OMP_NUM_THREADS" not in text


def test_threads_that_spin_are_a_note(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        "ok    threads    OpenMP's threads spin 10,000 rounds" in cli("doctor", "--check", "threads").done()
    )
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "spin while they wait (OMP_WAIT_POLICY=active)" in cli("doctor", "--check", "threads").done()


def test_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    cli("doctor", "--check", "teeth").misused("'teeth' is none of " + ", ".join(CHECKS))
    cli("doctor", "--check", "bundle").misused("name a BUNDLE")


def test_the_graph_is_one_that_onnx_knows(tmp_path: Path) -> None:
    import numpy as np
    import onnx

    model = onnx.load_from_string(onnx_product(np.ones((3, 300), np.float32)))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
