"""LoRA adapters for llama.cpp, built in memory: GGUF images and the handles that are loaded from them."""

from __future__ import annotations

import ctypes
import io
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from ...errors import BaseMismatchError
from ...formats import gguf
from ...formats.gguf import FLOAT32, STRING
from .log import signals_wait

Adapter = Any
"""Pointer to a `llama_adapter_lora`, as llama_cpp's functions return and take it."""

_libc = ctypes.CDLL(None) if os.name != "nt" else None
_HAS_FMEMOPEN = hasattr(_libc, "fmemopen")
if _HAS_FMEMOPEN:
    _libc.fmemopen.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]  # type: ignore[union-attr]
    _libc.fmemopen.restype = ctypes.c_void_p  # type: ignore[union-attr]
    _libc.fclose.argtypes = [ctypes.c_void_p]  # type: ignore[union-attr]


class LoraImage:
    """A LoRA adapter as the bytes of its GGUF file, whose B blocks can be rewritten in place.

    Args:
        architecture: `general.architecture` of the base.
        pairs: module -> (A [r, in], B [out, r]), or the same with one leading axis for experts.
    """

    def __init__(self, architecture: str, pairs: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> None:
        tensors: dict[str, NDArray[Any]] = {}
        for module, (a, b) in pairs.items():
            # float32 also where the factors are stored in float16: ggml would round activations to
            # float16 before it multiplied them with a float16 matrix.
            tensors[f"{module}.lora_a"] = np.asarray(a, np.float32)
            tensors[f"{module}.lora_b"] = np.asarray(b, np.float32)
        metadata = [
            ("general.type", "adapter", STRING),
            ("adapter.type", "lora", STRING),
            ("adapter.lora.alpha", 0.0, FLOAT32),  # 0: the adapter's scale is used as it is
        ]
        file = io.BytesIO()
        gguf.write(file, architecture, metadata, tensors)
        entries = gguf.GGUFFile(file.getvalue()).tensors
        self._bytes = np.frombuffer(file.getbuffer(), np.uint8)
        self.b = {
            module: self._bytes[entry.offset :][: entry.nbytes].view(np.float32).reshape(entry.shape)
            for module in pairs
            for entry in (entries[f"{module}.lora_b"],)
        }

    def load(self, model: Any) -> Adapter:
        """Load the adapter into a model; the image may change afterwards.

        Raises:
            BaseMismatchError: llama.cpp refuses it, because its tensors do not fit the model.
        """
        with signals_wait():
            adapter = self._load_from_memory(model) if _HAS_FMEMOPEN else self._load_from_file(model)
        if not adapter:
            raise BaseMismatchError(
                "llama.cpp refused the adapter that was built from the basis: its modules or their shapes "
                "are not those of the loaded model (verbose=True shows which)"
            )
        return adapter

    def _load_from_memory(self, model: Any) -> Adapter | None:
        assert _libc is not None
        file = _libc.fmemopen(self._bytes.ctypes.data, self._bytes.nbytes, b"rb")
        if not file:
            raise MemoryError("fmemopen failed")
        try:
            return llama_cpp.llama_adapter_lora_init_from_file_ptr(model, file)
        finally:
            _libc.fclose(file)

    def _load_from_file(self, model: Any) -> Adapter | None:
        handle, path = tempfile.mkstemp(suffix=".gguf")  # 0600: nobody else reads or changes it
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self._bytes.data)
            return llama_cpp.llama_adapter_lora_init(model, path.encode())
        finally:
            os.unlink(path)


def free(adapter: Adapter, _free: Any = llama_cpp.llama_adapter_lora_free) -> None:
    """Free an adapter; the model must still exist.

    Bound early, like `free` itself where it is used: when the interpreter ends, globals go first.
    """
    _free(adapter)
