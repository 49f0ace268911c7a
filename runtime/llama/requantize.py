"""A copy of a GGUF model with weights of another type, for what generates in large batches."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import llama_cpp
from llama_cpp._logger import set_verbose

from ...basis import Basis
from ...errors import TinyLoraError
from .log import signals_wait
from .model import TinyLoraLlama


def bf16_is_faster() -> bool:
    """Whether llama.cpp's batched kernels are faster for bfloat16 than for quantized types here.

    They are (1.5 times, Q4_1), but where the processor multiplies 8-bit integers in AMX tiles, which
    llama.cpp uses for quantized types alone (2 times the other way).
    """
    return b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info()


@contextmanager
def bfloat16_copy(base: Path, copy: Path, basis: Basis, n_threads: int) -> Iterator[TinyLoraLlama]:
    """Open a copy of the deployed model in bfloat16, which is removed afterwards.

    Args:
        base: the deployed GGUF.
        copy: where the copy lies; one that is there already is used.
        basis: of the deployed model. No basis lists the copy, so it is not opened through `load`.
        n_threads: of a context.

    Raises:
        TinyLoraError: llama.cpp could not write the copy.
    """
    try:
        if not copy.exists():
            requantize(base, copy)
        llm = TinyLoraLlama(str(copy), basis=basis, n_ctx=64, n_threads=n_threads, verbose=False)
        with closing(llm):
            yield llm
    finally:
        copy.unlink(missing_ok=True)


def requantize(source: Path, target: Path, weights: str = "BF16") -> None:
    """Write a copy of a model whose matrices have another type, atomically.

    Args:
        source: a GGUF file.
        target: what to write.
        weights: a file type of llama.cpp: `BF16`, `Q8_0`, `Q4_K_M`, ...

    Raises:
        TinyLoraError: llama.cpp has no such type, or could not write the copy.
    """
    set_verbose(False)
    params = llama_cpp.llama_model_quantize_default_params()
    ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{weights}", None)
    if ftype is None:
        raise TinyLoraError(f"llama.cpp has no file type {weights!r}: BF16, Q8_0 and Q4_K_M are some")
    params.ftype = ftype
    params.allow_requantize = True
    partial = target.with_name(f".{target.name}.tmp")
    with signals_wait():
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(partial).encode(), ctypes.byref(params)
        )
    if code:
        partial.unlink(missing_ok=True)
        raise TinyLoraError(
            f"llama.cpp could not write a copy of {source} as {weights} (code {code}): check the free space "
            f"at {target.parent}, or do without the copy"
        )
    os.replace(partial, target)
