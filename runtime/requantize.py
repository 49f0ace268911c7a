"""A copy of a GGUF model in bfloat16, for what generates in large batches."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import llama_cpp
from llama_cpp._logger import set_verbose

from ..errors import TinyLoraError


def bf16_is_faster() -> bool:
    """Whether llama.cpp's batched kernels are faster for bfloat16 than for quantized types here.

    They are (1.5 times, Q4_1), but where the processor multiplies 8-bit integers in AMX tiles, which
    llama.cpp uses for quantized types alone (2 times the other way).
    """
    return b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info()


def write_bf16(source: Path, target: Path) -> None:
    """Write a bfloat16 copy of a model, atomically.

    Raises:
        TinyLoraError: llama.cpp could not write it.
    """
    set_verbose(False)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_BF16
    params.allow_requantize = True
    partial = target.with_name(f".{target.name}.tmp")
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(params))
    if code:
        partial.unlink(missing_ok=True)
        raise TinyLoraError(
            f"llama.cpp could not write a bfloat16 copy of {source} (code {code}): check the free space at "
            f"{target.parent}, or do without the copy"
        )
    os.replace(partial, target)
