"""llama.cpp, the engine of GGUF bundles: finds and checks its libraries. Importing this folder loads none.

llama-cpp-python is built from source, or is installed without llama.cpp and takes ready-made libraries from
the folder that LLAMA_CPP_LIB_PATH names. Its ctypes structures have to be those of the libraries: a structure
that is a field longer there is written past its end here. So the versions are compared before any use.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tinylora_edge.errors import TinyLoraError
from tinylora_edge.process import set_waiting

VARIABLE = "LLAMA_CPP_LIB_PATH"
"""The environment variable that names a folder with other libraries to llama-cpp-python."""

BINDINGS, WHEEL = "llama-cpp-python", "llama-cpp-py-sync"
"""Distributions: the bindings, with or without libraries, and the one that brings ready-made libraries."""

FITTING = {"0.3.36": ("0.25.3", "0.5.0")}
"""Version of llama-cpp-python -> versions of ggml and llama.cpp that its bindings were written for."""

_NAMES = ("libllama.so", "libllama.dylib", "llama.dll", "libllama.dll")
_pointed: list[str] = []  # what this module set the variable to


class LlamaLibraries(NamedTuple):
    """The folder of llama.cpp's libraries, and whose they are: a distribution's, or VARIABLE's."""

    folder: Path
    source: str


def find_libraries() -> LlamaLibraries | None:
    """Return the libraries that llama-cpp-python will find, unopened; None where there are none."""
    named = os.environ.get(VARIABLE)
    if named is not None and named not in _pointed:
        return LlamaLibraries(Path(named), VARIABLE)
    for folder, source in ((_folder("llama_cpp", "lib"), BINDINGS), (_folder("llama_cpp_py_sync"), WHEEL)):
        if folder is not None and any((folder / name).exists() for name in _NAMES):
            return LlamaLibraries(folder, source)
    return None


def point_to_libraries() -> None:
    """Name the wheel's folder to llama-cpp-python before its import, unless it or the user names another."""
    if VARIABLE in os.environ or "llama_cpp" in sys.modules:
        return
    if (found := find_libraries()) is not None and found.source == WHEEL:
        os.environ[VARIABLE] = str(found.folder)
        _pointed.append(str(found.folder))


@cache
def import_llama_cpp() -> LlamaLibraries | None:
    """Import `llama_cpp` with the libraries that there are, and check that they fit.

    Raises:
        ModuleNotFoundError: llama-cpp-python is not installed.
        TinyLoraError: there are no libraries, or they are of another llama.cpp than the bindings.
    """
    set_waiting()  # OpenMP reads it when llama.cpp loads it
    found = find_libraries()
    point_to_libraries()
    try:
        import llama_cpp
    except AttributeError as error:  # a function that ctypes was to find
        raise _mismatch(found, f"they lack a function: {error}") from error
    except (FileNotFoundError, RuntimeError) as error:
        where = f" from {found.folder}" if found else ": its libraries are not installed"
        raise TinyLoraError(f"llama.cpp cannot be loaded{where}: {error}. {_ADVICE}") from error
    finally:
        if os.environ.get(VARIABLE) in _pointed:  # programs that are started from here have their own
            del os.environ[VARIABLE]
    if found is not None and found.source != BINDINGS:  # its own fit
        if llama_cpp.__version__ not in FITTING:
            known = ", ".join(FITTING)
            raise _mismatch(found, f"those that fit are known for {BINDINGS} {known} alone")
        for function, wants in zip(
            ("ggml_version", "llama_version"), FITTING[llama_cpp.__version__], strict=True
        ):
            has = _text(llama_cpp.llama_cpp._lib, function).partition("-")[0]
            if has and has != wants:
                raise _mismatch(found, f"their {function} is {has}, and the bindings need {wants}")
    return found


def probe() -> None:
    """Load the libraries and have them detect the processor. Errors: those of `import_llama_cpp`."""
    import_llama_cpp()
    import llama_cpp

    llama_cpp.llama_backend_init()
    llama_cpp.llama_print_system_info()


def _folder(module: str, below: str = "") -> Path | None:
    spec = importlib.util.find_spec(module)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / below


def _text(native: Any, function: str) -> str:
    try:
        call = native[function]
    except AttributeError:  # Windows finds no functions of the libraries that a library needs
        return ""
    call.restype = ctypes.c_char_p
    text: bytes | None = call()
    return (text or b"").decode("utf-8", "replace")


def _mismatch(found: LlamaLibraries | None, how: str) -> TinyLoraError:
    of = f" in {found.folder} (from {found.source})" if found else ""
    installed = version(BINDINGS)
    return TinyLoraError(f"the llama.cpp libraries{of} do not fit {BINDINGS} {installed}: {how}. {_ADVICE}")


_ADVICE = (
    "Install the pair that fits, SKBUILD_WHEEL_CMAKE=false pip install --no-cache-dir "
    '"tinylora-edge[llama-wheel]", or build it with a C++ compiler: pip install --force-reinstall '
    f"--no-cache-dir --no-deps {BINDINGS}=={[*FITTING][-1]} ({VARIABLE} unset). ONNX bundles need neither: "
    'pip install "tinylora-edge[onnx]"'
)

# Before any module here imports llama_cpp: that loads its libraries, which read how threads are to wait.
point_to_libraries()
set_waiting()
