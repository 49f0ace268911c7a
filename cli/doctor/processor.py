"""Instruction sets: those that llama.cpp's build uses against those that the processor has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set

from ...runtime.libraries import find_libraries, lacking
from ...runtime.processor import flags
from .finding import FAULT, NOTE, OK, Finding, install

CHECK = "processor"

_NAMES = {  # as llama.cpp says them -> as Linux does
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX_VNNI": "avx_vnni",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "FP16_VA": "asimdhp",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
    "SME": "sme",
}
_REBUILD = "CMAKE_ARGS=-DGGML_NATIVE=ON "
_OPTIONS = "--force-reinstall --no-cache-dir --no-binary llama-cpp-python"


def check(system: str) -> Iterator[Finding]:
    """Yield what the build lacks, or has too much of.

    Args:
        system: what `llama_print_system_info` says; empty where llama.cpp does not load.
    """
    has = flags()
    if missing := lacking(find_libraries(), has):
        text = f"the ready-made llama.cpp libraries need {', '.join(missing)}, which this processor lacks"
        yield Finding(CHECK, FAULT, text, install("llama-cpp-python", options=_OPTIONS))
        return
    if not system:
        return
    if not has:
        yield Finding(CHECK, NOTE, "what the processor can do is not known on this system")
        return
    yield compare(used(system), has)


def used(system: str) -> set[str]:
    """Return the instruction sets that a build uses, by llama.cpp's names."""
    return {name for name, value in re.findall(r"(\w+) = (\d+)", system) if value != "0"} & set(_NAMES)


def compare(build: Set[str], processor: Set[str]) -> Finding:
    """Return how a build fits a processor.

    Args:
        build: instruction sets, by llama.cpp's names.
        processor: flags, by Linux's names.
    """
    rebuild = _REBUILD + install("llama-cpp-python", options=_OPTIONS)
    too_many = sorted(name for name in build if _NAMES[name] not in processor)
    if too_many:
        text = f"llama.cpp was built for {', '.join(too_many)}, which this processor lacks: it may crash"
        return Finding(CHECK, FAULT, text, rebuild)
    unused = [name for name, flag in _NAMES.items() if flag in processor and name not in build]
    said = ", ".join(name for name in _NAMES if name in build) or "no instruction set by name"
    if unused:
        text = f"llama.cpp uses {said}; the processor also has {', '.join(unused)}: a build here is faster"
        return Finding(CHECK, NOTE, text, rebuild)
    return Finding(CHECK, OK, f"llama.cpp uses all that it can of this processor: {said}")
