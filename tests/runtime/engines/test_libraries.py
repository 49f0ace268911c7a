"""The llama.cpp libraries: which are taken, that those of another llama.cpp are refused, how threads wait."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from tinylora_edge import process
from tinylora_edge.runtime.llama import BINDINGS, FITTING, VARIABLE, WHEEL

LOADED, OWN = Path(llama_cpp.llama_cpp._lib._name).parent, Path(llama_cpp.__file__).parent / "lib"

IMPORT = """
import json, os, sys
from tinylora_edge import TinyLoraError
from tinylora_edge.runtime import llama
try:
    found = llama.import_llama_cpp()
    import tinylora_edge.runtime.llama.model  # as `load` does, once the libraries are there
    report = [found.source, str(found.folder), os.environ.get("LLAMA_CPP_LIB_PATH")]
except TinyLoraError as error:
    report = str(error)
print(json.dumps([report, "llama_cpp" in sys.modules, os.environ.get("GOMP_SPINCOUNT")]))
"""


def imported(path: Path | None = None, **variables: str) -> Any:
    dropped = (VARIABLE, *process.OPENMP_VARIABLES)
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | variables
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "libraries"
    folder.mkdir()
    for file in LOADED.glob("*"):
        if "ggml" in file.name or file.name.startswith("libllama."):
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture
def without_libraries(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "llama_cpp").mkdir(parents=True)
    for file in Path(llama_cpp.__file__).parent.glob("*.py"):
        (folder / "llama_cpp" / file.name).symlink_to(file)
    return folder


@pytest.fixture
def wheel(without_libraries: Path, copied: Path) -> Path:
    folder = copied.rename(without_libraries / "llama_cpp_py_sync")
    (folder / "__init__.py").touch()
    return folder


@pytest.mark.skipif(not OWN.exists(), reason="llama-cpp-python was installed without libraries")
def test_its_own_libraries_are_taken_whatever_lies_beside_them(without_libraries: Path, wheel: Path) -> None:
    shutil.rmtree(without_libraries / "llama_cpp")
    assert imported(without_libraries)[0] == [BINDINGS, str(OWN), None]


def test_the_wheels_libraries_are_found_where_there_are_no_own(without_libraries: Path, wheel: Path) -> None:
    report, _, spin = imported(without_libraries)
    assert report == [WHEEL, str(wheel), None]
    assert spin == str(process.SPIN)
    assert imported(without_libraries, OMP_WAIT_POLICY="ACTIVE")[2] is None  # what the user has set stays


def test_a_folder_that_the_user_names_stays(without_libraries: Path, copied: Path, tmp_path: Path) -> None:
    report, *_ = imported(without_libraries)
    assert 'SKBUILD_WHEEL_CMAKE=false pip install --no-cache-dir "tinylora-edge[llama-wheel]"' in report
    assert imported(**{VARIABLE: str(copied)})[0] == [VARIABLE, str(copied), str(copied)]
    report, *_ = imported(**{VARIABLE: str(tmp_path)})
    assert f"llama.cpp cannot be loaded from {tmp_path}" in report


@pytest.mark.skipif(sys.platform != "linux", reason="changes names in ELF files")
def test_libraries_of_another_llama_cpp_are_refused_by_name(copied: Path) -> None:
    def change(file: Path, old: bytes, new: bytes) -> None:
        data = file.read_bytes()
        assert old in data
        file.write_bytes(data.replace(old, new))

    change(copied / "libllama.so", b"llama_set_adapters_lora\0", b"llama_set_adapters_lorX\0")
    report, *_ = imported(**{VARIABLE: str(copied)})
    assert "do not fit" in report
    assert "llama_set_adapters_lora" in report
    change(copied / "libllama.so", b"llama_set_adapters_lorX\0", b"llama_set_adapters_lora\0")
    wanted = FITTING[llama_cpp.__version__][0]
    other = wanted[:-1] + "9"
    for file in copied.glob("libggml-base.so*"):
        change(file, wanted.encode() + b"\0", other.encode() + b"\0")
    report, *_ = imported(**{VARIABLE: str(copied)})
    assert f"their ggml_version is {other}, and the bindings need {wanted}" in report
