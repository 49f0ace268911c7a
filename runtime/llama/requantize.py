"""A copy of a GGUF model with weights of another type, for what generates in large batches."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp._logger import set_verbose

from ...basis import Bases
from ...errors import TinyLoraError
from .log import signals_wait
from .model import TinyLoraLlama

_PROBE = b"A river is a stream of water that flows to the sea."


def half_type() -> str | None:
    """Return the 16-bit type that llama.cpp's batched kernels are fastest for here, `BF16` or `F16`.

    64 tokens at a time, such a copy of a Q4_1 base is 1.5 times as fast as the base, and with AVX2 one in
    float16 1.4 times as fast as one in bfloat16. None with AMX tiles, where quantized types win.
    """
    features = llama_cpp.llama_print_system_info()
    if b"AMX_INT8 = 1" in features:
        return None
    return "F16" if b"F16C = 1" in features and b"AVX512_BF16 = 1" not in features else "BF16"


@contextmanager
def half_copy(base: Path, copy: Path, bases: Bases, n_threads: int) -> Iterator[TinyLoraLlama]:
    """Open a copy of the deployed model in 16 bits (`half_type`), which is removed afterwards.

    It lies at `copy` with a suffix; one that is there already is used. It is in bfloat16 where the model
    computes more on the way than float16's 65,504. The bases do not list it, so `load` does not open it.

    Raises:
        TinyLoraError: llama.cpp could not write the copy.
    """
    kind = half_type() or "BF16"
    options: dict[str, Any] = {"n_ctx": 64, "n_threads": n_threads, "verbose": False}
    for weights in dict.fromkeys((kind, "BF16")):
        path = copy.with_name(f"{copy.name}-{weights.lower()}.gguf")
        try:
            if not path.exists():
                requantize(base, path, weights)
            with closing(TinyLoraLlama(str(path), bases=bases, **options)) as llm:
                llm.eval(llm.tokenize(_PROBE))
                if weights == "BF16" or llm._finite():
                    yield llm
                    return
        finally:
            path.unlink(missing_ok=True)


def requantize(source: Path, target: Path, weights: str) -> None:
    """Write a copy of a GGUF model in another file type of llama.cpp (`BF16`, `Q8_0`, `Q4_K_M`), atomically.

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
