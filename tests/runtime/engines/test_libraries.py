"""The llama.cpp libraries: which are taken, that those of another llama.cpp are refused, how threads wait."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from tinylora_edge import process
from tinylora_edge.runtime import libraries
from tinylora_edge.runtime.libraries import BINDINGS, VARIABLE, WHEEL

BUILT = Path(llama_cpp.llama_cpp._lib._name).parent

IMPORT = """
import json, os, sys
from tinylora_edge import TinyLoraError
from tinylora_edge.runtime import libraries
if sys.argv[1:]:
    libraries.CPUINFO = libraries.Path(sys.argv[1])
try:
    found = libraries.import_llama_cpp()
    import tinylora_edge.runtime.llama.model  # as `load` does, once the libraries are there
    said = [found.source, str(found.folder), os.environ.get("LLAMA_CPP_LIB_PATH")]
except TinyLoraError as error:
    said = str(error)
print(json.dumps([said, "llama_cpp" in sys.modules, os.environ.get("GOMP_SPINCOUNT")]))
"""


def imported(path: Path | None = None, cpuinfo: Path | None = None, **variables: str) -> Any:
    dropped = (VARIABLE, *process.OPENMP_VARIABLES)
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | variables
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", IMPORT, *([] if cpuinfo is None else [str(cpuinfo)])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "libraries"
    folder.mkdir()
    for file in BUILT.glob("*"):
        if "ggml" in file.name or file.name.startswith("libllama."):
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "llama_cpp").mkdir(parents=True)
    for file in Path(llama_cpp.__file__).parent.glob("*.py"):
        (folder / "llama_cpp" / file.name).symlink_to(file)
    return folder


@pytest.fixture
def wheel(bare: Path, copied: Path) -> Path:
    folder = copied.rename(bare / "llama_cpp_py_sync")
    (folder / "__init__.py").touch()
    return folder


def test_its_own_libraries_are_taken_whatever_lies_beside_them(bare: Path, wheel: Path) -> None:
    shutil.rmtree(bare / "llama_cpp")
    assert imported(bare)[0] == [BINDINGS, str(BUILT), None]


def test_the_wheels_libraries_are_found_where_there_are_no_own(bare: Path, wheel: Path) -> None:
    said, _, spin = imported(bare)
    assert said == [WHEEL, str(wheel), None]
    assert spin == str(process.SPIN)
    assert imported(bare, OMP_WAIT_POLICY="ACTIVE")[2] is None  # what the user has set stays


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="as Linux says it")
def test_another_processor_is_refused_before_anything_is_loaded(
    bare: Path, wheel: Path, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    sandy_bridge = "processor\t: 0\nflags\t\t: fpu sse sse2 pni ssse3 sse4_1 sse4_2 popcnt aes avx hypervisor"
    cpuinfo.write_text(f"{sandy_bridge}\nbugs\t\t: spectre_v1\n\n" * 2)
    for variables in ({}, {VARIABLE: str(wheel)}):
        said, loaded, _ = imported(bare, cpuinfo, **variables)
        assert "this processor lacks avx2, f16c, fma, bmi2" in said
        assert 'pip install "tinylora-edge[onnx]"' in said
        assert not loaded
    for text in (f"{sandy_bridge} f16c fma bmi1 bmi2 avx2\n", "model name : unnamed\n"):
        cpuinfo.write_text(text)
        assert imported(bare, cpuinfo)[0][0] == WHEEL


def test_a_folder_that_the_user_names_stays(copied: Path, tmp_path: Path) -> None:
    assert imported(**{VARIABLE: str(copied)})[0] == [VARIABLE, str(copied), str(copied)]
    said, *_ = imported(**{VARIABLE: str(tmp_path)})
    assert f"llama.cpp cannot be loaded from {tmp_path}" in said


def test_no_libraries_at_all(bare: Path) -> None:
    said, *_ = imported(bare)
    assert 'pip install "tinylora-edge[llama-wheel]"' in said


@pytest.mark.skipif(sys.platform != "linux", reason="changes names in ELF files")
def test_libraries_of_another_llama_cpp_are_refused_by_name(copied: Path) -> None:
    def change(file: Path, old: bytes, new: bytes) -> None:
        data = file.read_bytes()
        assert old in data
        file.write_bytes(data.replace(old, new))

    change(copied / "libllama.so", b"llama_set_adapters_lora\0", b"llama_set_adapters_lorX\0")
    said, *_ = imported(**{VARIABLE: str(copied)})
    assert "do not fit" in said
    assert "llama_set_adapters_lora" in said
    change(copied / "libllama.so", b"llama_set_adapters_lorX\0", b"llama_set_adapters_lora\0")
    wanted = libraries.FITTING[llama_cpp.__version__][0]
    other = wanted[:-1] + "9"
    for file in copied.glob("libggml-base.so*"):
        change(file, wanted.encode() + b"\0", other.encode() + b"\0")
    said, *_ = imported(**{VARIABLE: str(copied)})
    assert f"their ggml_version is {other}, and that of the bindings {wanted}" in said
