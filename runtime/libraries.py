"""The llama.cpp libraries that llama-cpp-python loads: its own, those of a wheel, or the user's.

llama-cpp-python is built from source, or is installed without llama.cpp and takes ready-made libraries from
the folder that LLAMA_CPP_LIB_PATH names. Its ctypes structures then have to be those of the libraries: a
structure that is a field longer there is written past its end here. So both are compared before any use.
Ready-made libraries use instructions that not every processor has, which is asked before they are loaded.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import TinyLoraError
from ..system import set_waiting
from .processor import flags

VARIABLE = "LLAMA_CPP_LIB_PATH"
"""The environment variable by which llama-cpp-python is told of a folder with other libraries."""

BINDINGS, WHEEL = "llama-cpp-python", "llama-cpp-py-sync"
"""Distributions: the bindings, with or without libraries, and the one that brings ready-made libraries."""

FITTING = {"0.3.36": ("0.25.3", "0.5.0")}
"""Version of llama-cpp-python -> versions of ggml and llama.cpp that its bindings were written for."""

USED = {  # as llama.cpp says them -> as Linux does
    "AVX": "avx",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
}
"""Instruction sets that the wheel's libraries for x86-64 use: as `llama_print_system_info` says them."""

_NAMES = ("libllama.so", "libllama.dylib", "llama.dll", "libllama.dll")
_RETURNED = {  # function -> the structure that it returns, through memory that the caller provides
    "llama_model_default_params": "llama_model_params",
    "llama_context_default_params": "llama_context_params",
    "llama_model_quantize_default_params": "llama_model_quantize_params",
    "llama_batch_init": "llama_batch",
}
_BUILD = f"pip install --force-reinstall --no-cache-dir --no-deps {BINDINGS}"
_ONNX = 'pip install "tinylora-edge[onnx]"'
_ALIGNED = 8  # bytes: the end of a structure may be padded by fewer
_BEYOND = 256  # bytes behind a structure that are watched
_MARKS = 0xA5, 0x5A

_pointed: list[str] = []  # what this module set the variable to


@dataclass(frozen=True)
class LlamaLibraries:
    """Where llama.cpp's libraries come from, and their versions.

    Attributes:
        folder: that holds them.
        source: `llama-cpp-python` for its own, `llama-cpp-py-sync` for those of the wheel, or
            `LLAMA_CPP_LIB_PATH` where the user named a folder.
        ggml: version of ggml.
        llama: version of llama.cpp.
        instructions: what ggml was built with, as it says itself: `AVX2 = 1 | ...`.
    """

    folder: Path
    source: str
    ggml: str = ""
    llama: str = ""
    instructions: str = ""


def find_libraries() -> LlamaLibraries | None:
    """Return where llama-cpp-python will find its libraries, unopened; None where there are none."""
    named = os.environ.get(VARIABLE)
    if named is not None and named not in _pointed:
        return LlamaLibraries(Path(named), VARIABLE)
    for folder, source in ((_folder("llama_cpp", "lib"), BINDINGS), (_folder("llama_cpp_py_sync"), WHEEL)):
        if folder is not None and any((folder / name).exists() for name in _NAMES):
            return LlamaLibraries(folder, source)
    return None


def _folder(module: str, below: str = "") -> Path | None:
    """Return a folder of a module that is installed, unimported."""
    spec = importlib.util.find_spec(module)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / below


def lacking(found: LlamaLibraries | None, processor: Set[str]) -> list[str]:
    """Return what ready-made libraries use and a processor lacks, by llama.cpp's names; nothing of others.

    What was built from source says only when it is loaded what it was built for.

    Args:
        found: the libraries, unopened; None where there are none.
        processor: its flags, by Linux's names (`processor.flags`); empty where they are not known.
    """
    ready = found is not None and found.folder == _folder("llama_cpp_py_sync")
    if not ready or not processor or not _is_x86():
        return []
    return [name for name, flag in USED.items() if flag not in processor]


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def point_to_libraries() -> None:
    """Name the wheel's folder to llama-cpp-python, where it has no libraries of its own.

    Nothing is done once `llama_cpp` is imported. What the user has set stays.
    """
    if VARIABLE in os.environ or "llama_cpp" in sys.modules:
        return
    if (found := find_libraries()) is not None and found.source == WHEEL:
        os.environ[VARIABLE] = str(found.folder)
        _pointed.append(str(found.folder))


@cache
def import_llama_cpp() -> LlamaLibraries:
    """Import `llama_cpp` with the libraries that there are, and check that they fit.

    Raises:
        ModuleNotFoundError: llama-cpp-python is not installed.
        TinyLoraError: there are no libraries, they are of another llama.cpp than the bindings, or of another
            processor than this one.
    """
    set_waiting()  # OpenMP reads it when llama.cpp loads it
    found = find_libraries()
    if missing := lacking(found, flags()):
        raise _wrong_processor(found, missing)
    point_to_libraries()
    try:
        import llama_cpp
    except AttributeError as error:  # a function that ctypes was to find
        symbol = re.search(r"symbol:? '?(\w+)|function '(\w+)'", str(error))
        raise _mismatch(
            found, f"they lack {symbol.group(1) or symbol.group(2) if symbol else error}"
        ) from error
    except FileNotFoundError as error:
        raise _none(found) from error
    except RuntimeError as error:  # the loader's reason is in the message
        raise TinyLoraError(f"llama.cpp cannot be loaded: {error}. {_advice(found)}") from error
    finally:
        if (
            os.environ.get(VARIABLE) in _pointed
        ):  # other programs that this one starts have libraries of theirs
            del os.environ[VARIABLE]
    return check_libraries(llama_cpp, found)


def built_for_a_gpu() -> bool:
    """Return whether llama.cpp computes layers on a GPU; where it does not, it ignores a wish for some.

    Raises:
        ModuleNotFoundError, TinyLoraError: as for `import_llama_cpp`.
    """
    import_llama_cpp()
    import llama_cpp

    return bool(llama_cpp.llama_supports_gpu_offload())


def check_libraries(llama_cpp: Any, found: LlamaLibraries | None) -> LlamaLibraries:
    """Compare the libraries that `llama_cpp` has loaded with its bindings; return them with their versions.

    Args:
        llama_cpp: the imported package.
        found: where they come from; None where that is not known.

    Raises:
        TinyLoraError: versions or sizes of structures differ; the message names both and what to do.
    """
    native = llama_cpp.llama_cpp._lib
    found = found or LlamaLibraries(Path(native._name).parent, BINDINGS)
    ggml, llama = _text(native, "ggml_version"), _text(native, "llama_version")
    needed = FITTING.get(llama_cpp.__version__)
    # Its own were built from the sources that its bindings were written for.
    if needed is not None and found.source != BINDINGS:
        for name, has, wants in (
            ("ggml", ggml, needed[0]),
            ("llama.cpp", llama.partition("-")[0], needed[1]),
        ):
            if has and has != wants:
                raise _mismatch(found, f"they are of {name} {has}, and the bindings of {wants}")
    for function, structure in _RETURNED.items():
        size = ctypes.sizeof(getattr(llama_cpp, structure))
        if (
            written := _written(native, function, size)
        ) is not None and not size - _ALIGNED < written <= size:
            raise _mismatch(found, f"their {structure} has {written} bytes, and that of the bindings {size}")
    instructions = _text(native, "llama_print_system_info")
    return LlamaLibraries(found.folder, found.source, ggml, llama, instructions.strip(" |"))


def _written(native: Any, function: str, size: int) -> int | None:
    """Return how many bytes a function writes of the structure that it returns; None where one cannot ask.

    Where structures are returned through a hidden first argument, memory with a mark in every byte can be
    passed for it. The numbers behind it make a batch of one token, whose bytes nobody frees: once a process.
    """
    if not _is_x86() or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    call = native[function]  # a function object of our own: the bindings' has their prototype
    call.restype = ctypes.c_void_p
    last = 0
    for mark in _MARKS:
        memory = (ctypes.c_ubyte * (size + _BEYOND))(*[mark] * (size + _BEYOND))
        call(ctypes.byref(memory), ctypes.c_int32(1), ctypes.c_int32(0), ctypes.c_int32(1))
        changed = [index for index, byte in enumerate(memory) if byte != mark]
        last = max(last, changed[-1] + 1 if changed else 0)
    return last


def _text(native: Any, function: str) -> str:
    """Return what a function without arguments says; nothing where it cannot be asked."""
    try:
        call = native[function]
    except AttributeError:  # Windows finds no functions of the libraries that a library needs
        return ""
    call.restype = ctypes.c_char_p
    said: bytes | None = call()
    return (said or b"").decode("utf-8", "replace")


def _mismatch(found: LlamaLibraries | None, how: str) -> TinyLoraError:
    of = f" in {found.folder} (from {found.source})" if found else ""
    return TinyLoraError(
        f"the llama.cpp libraries{of} do not fit {BINDINGS} {_installed(BINDINGS)}: {how}. {_advice(found)}"
    )


def _wrong_processor(found: LlamaLibraries | None, missing: list[str]) -> TinyLoraError:
    where = f" in {found.folder}" if found else ""
    return TinyLoraError(
        f"the ready-made llama.cpp libraries{where} use {', '.join(USED)}, and this "
        f"processor lacks {', '.join(missing)}: they would end the process. Build llama.cpp here, with a C++ "
        f"compiler: {_BUILD}. ONNX bundles need neither: {_ONNX}"
    )


def _none(found: LlamaLibraries | None) -> TinyLoraError:
    if found is not None and found.source == VARIABLE:
        return TinyLoraError(
            f"{VARIABLE} names {found.folder}, which has no llama.cpp library: {_advice(found)}"
        )
    return TinyLoraError(
        f"{BINDINGS} {_installed(BINDINGS)} was installed without llama.cpp's libraries, and nothing else "
        f"brings them. {_advice(None)}"
    )


def _advice(found: LlamaLibraries | None) -> str:
    """What to do where the libraries cannot be used."""
    if found is not None and found.source == VARIABLE:
        return f"Unset {VARIABLE}, or name a folder with libraries of its llama.cpp"
    return (
        'Install the pair that fits: pip install "tinylora-edge[llama-wheel]". Or build it, with a C++ '
        f"compiler: {_BUILD}. ONNX bundles need neither: {_ONNX}"
    )


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "of unknown version"
