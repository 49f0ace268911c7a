"""The llama.cpp libraries: which are taken, and that those of another llama.cpp are refused by name."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp
import pytest

from tinylora_edge import TinyLoraError
from tinylora_edge.runtime import libraries
from tinylora_edge.runtime.libraries import BINDINGS, VARIABLE, WHEEL, LlamaLibraries

BUILT = Path(llama_cpp.llama_cpp._lib._name).parent

IMPORT = """
import json, os, sys
from tinylora_edge import TinyLoraError
from tinylora_edge.runtime import libraries, processor
from tinylora_edge.runtime.libraries import import_llama_cpp
if sys.argv[1:]:
    libraries.flags = lambda: processor.flags(processor.Path(sys.argv[1]))
try:
    found = import_llama_cpp()
    import llama_cpp
    import tinylora_edge.runtime.llama  # as `load` does, once the libraries are there
    said = [found.source, str(found.folder), found.ggml, os.environ.get("LLAMA_CPP_LIB_PATH")]
except TinyLoraError as error:
    said = str(error)
said = [said, "llama_cpp" in sys.modules] if sys.argv[1:] else said
print(json.dumps(said))
"""


def imported(path: Path | None = None, cpuinfo: Path | None = None, **variables: str) -> Any:
    """What a new process says: source, folder, version of ggml and the variable; or an error.

    With another processor's description, it says too whether the bindings were imported.
    """
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | variables
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", IMPORT, *([] if cpuinfo is None else [str(cpuinfo)])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with a copy of the libraries, to be damaged."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    for file in BUILT.glob("*"):
        if "ggml" in file.name or file.name.startswith("libllama."):
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with the bindings, installed without libraries."""
    folder = tmp_path / "site"
    (folder / "llama_cpp").mkdir(parents=True)
    for file in Path(llama_cpp.__file__).parent.glob("*.py"):
        (folder / "llama_cpp" / file.name).symlink_to(file)
    return folder


def change(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert old in data
    assert len(old) == len(new)
    file.write_bytes(data.replace(old, new))


def test_its_own_libraries_are_taken(bare: Path, copied: Path) -> None:
    source, folder, ggml, variable = imported()
    assert (source, variable) == (BINDINGS, None)
    assert Path(folder) == BUILT
    assert ggml == libraries.FITTING[llama_cpp.__version__][0]
    copied.rename(bare / "llama_cpp_py_sync")  # the wheel beside them changes nothing
    (bare / "llama_cpp_py_sync" / "__init__.py").touch()
    shutil.rmtree(bare / "llama_cpp")
    assert imported(bare)[0] == BINDINGS


def test_the_wheels_libraries_are_found_where_there_are_no_own(bare: Path, copied: Path) -> None:
    wheel = bare / "llama_cpp_py_sync"
    copied.rename(wheel)
    (wheel / "__init__.py").touch()
    source, folder, ggml, variable = imported(bare)
    assert (source, folder) == (WHEEL, str(wheel))
    assert ggml
    assert variable is None  # programs that are started from here have libraries of their own


@pytest.mark.skipif(not libraries._is_x86() or sys.platform != "linux", reason="a processor as Linux says it")
def test_another_processor_is_refused_before_anything_is_loaded(
    bare: Path, copied: Path, tmp_path: Path
) -> None:
    """Ready-made libraries on a processor of 2011, on one of 2013, and on one that says nothing."""
    wheel = bare / "llama_cpp_py_sync"
    copied.rename(wheel)
    (wheel / "__init__.py").touch()
    cpuinfo = tmp_path / "cpuinfo"
    sandy_bridge = "processor\t: 0\nflags\t\t: fpu sse sse2 pni ssse3 sse4_1 sse4_2 popcnt aes avx hypervisor"
    cpuinfo.write_text(f"{sandy_bridge}\nbugs\t\t: spectre_v1\n\n" * 2)
    for variables in ({}, {VARIABLE: str(wheel)}):
        said, loaded = imported(bare, cpuinfo, **variables)
        assert f"in {wheel} use AVX, AVX2, F16C, FMA, BMI2" in said
        assert "this processor lacks AVX2, F16C, FMA, BMI2" in said
        assert "pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python" in said
        assert 'pip install "tinylora-edge[onnx]"' in said
        assert not loaded
    cpuinfo.write_text(f"{sandy_bridge} f16c fma bmi1 bmi2 avx2\n")
    assert imported(bare, cpuinfo)[0][0] == WHEEL
    for unknown in ("", "model name : unnamed\n"):
        cpuinfo.write_text(unknown)
        assert imported(bare, cpuinfo)[0][0] == WHEEL


def test_what_was_built_here_is_not_asked_for_its_instructions(copied: Path) -> None:
    assert libraries.lacking(LlamaLibraries(BUILT, BINDINGS), {"fpu"}) == []
    assert libraries.lacking(LlamaLibraries(copied, VARIABLE), {"fpu"}) == []
    assert libraries.lacking(None, {"fpu"}) == []


def test_a_folder_that_the_user_names_stays(copied: Path) -> None:
    source, folder, _, variable = imported(**{VARIABLE: str(copied)})
    assert (source, folder, variable) == (VARIABLE, str(copied), str(copied))


def test_no_libraries_at_all(bare: Path, tmp_path: Path) -> None:
    said = imported(bare)
    assert "was installed without llama.cpp's libraries" in said
    assert 'pip install "tinylora-edge[llama-wheel]"' in said
    assert 'pip install "tinylora-edge[onnx]"' in said
    said = imported(**{VARIABLE: str(tmp_path)})
    assert f"{VARIABLE} names {tmp_path}" in said


@pytest.mark.skipif(sys.platform != "linux", reason="changes names in ELF files")
def test_libraries_of_another_llama_cpp_are_refused_by_name(copied: Path) -> None:
    change(copied / "libllama.so", b"llama_set_adapters_lora\0", b"llama_set_adapters_lorX\0")
    said = imported(**{VARIABLE: str(copied)})
    assert "do not fit" in said
    assert "they lack llama_set_adapters_lora" in said
    assert f"Unset {VARIABLE}" in said
    change(copied / "libllama.so", b"llama_set_adapters_lorX\0", b"llama_set_adapters_lora\0")
    wanted = libraries.FITTING[llama_cpp.__version__][0]
    other = wanted[:-1] + "9"
    for file in copied.glob("libggml-base.so*"):
        change(file, wanted.encode() + b"\0", other.encode() + b"\0")
    said = imported(**{VARIABLE: str(copied)})
    assert f"they are of ggml {other}, and the bindings of {wanted}" in said


@pytest.mark.parametrize("structure", libraries._RETURNED.values())
def test_structures_of_other_sizes_are_refused(structure: str) -> None:
    class Longer(ctypes.Structure):
        _fields_ = [("before", getattr(llama_cpp, structure)), ("more", ctypes.c_void_p * 2)]

    class Shorter(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_ubyte * (ctypes.sizeof(getattr(llama_cpp, structure)) - 16))]

    bindings = {name: getattr(llama_cpp, name) for name in libraries._RETURNED.values()}
    bindings |= {"llama_cpp": llama_cpp.llama_cpp, "__version__": llama_cpp.__version__}
    found = LlamaLibraries(BUILT, BINDINGS)
    assert libraries.check_libraries(SimpleNamespace(**bindings), found).ggml
    if libraries._written(llama_cpp.llama_cpp._lib, "llama_model_default_params", 80) is None:
        pytest.skip("structures cannot be measured on this processor")
    for planted in (Longer, Shorter):
        with pytest.raises(
            TinyLoraError, match=rf"their {structure} has \d+ bytes, and that of the bindings"
        ):
            libraries.check_libraries(SimpleNamespace(**bindings | {structure: planted}), found)
