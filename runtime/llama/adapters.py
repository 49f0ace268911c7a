"""LoRA adapters in memory: (A, B R), with a vector folded in, and (A, B), for all vectors of an engine."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp._logger import GGML_LOG_LEVEL_TO_LOGGING_LEVEL
from numpy.typing import NDArray

from tinylora_edge.errors import BaseMismatchError, TinyLoraError
from tinylora_edge.factors import Factors
from tinylora_edge.formats import gguf
from tinylora_edge.formats.gguf import FLOAT32, STRING
from tinylora_edge.projection import RANK

from .columns import has_operations

Adapter = Any
"""Pointer to a `llama_adapter_lora`, as llama_cpp's functions return and take it."""

_ALONE = 1 << 16
"""Most multiplications of a product that OpenBLAS computes in one thread. For larger ones it waits for more
threads, whose cores may be busy."""

_free = llama_cpp.llama_adapter_lora_free  # bound early: at the interpreter's end, globals go before models
_libc = ctypes.CDLL(None) if os.name != "nt" else None
_HAS_FMEMOPEN = hasattr(_libc, "fmemopen")
if _HAS_FMEMOPEN:
    _libc.fmemopen.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]  # type: ignore[union-attr]
    _libc.fmemopen.restype = ctypes.c_void_p  # type: ignore[union-attr]
    _libc.fclose.argtypes = [ctypes.c_void_p]  # type: ignore[union-attr]


# llama-cpp-python's table of levels is off by one: it would print warnings where it is to be silent.
GGML_LOG_LEVEL_TO_LOGGING_LEVEL[3] = logging.WARNING  # GGML_LOG_LEVEL_WARN in ggml.h

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def signals_wait() -> Iterator[None]:
    """Delay signals that have a Python handler to the end of a block in which llama.cpp writes its log.

    llama-cpp-python writes the log in a callback from C, and ctypes drops what a handler raises in it: two of
    three interrupts during a load were lost. Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: Any) -> None:
        arrived.append(number)

    handlers = {n: handler for n in _SIGNALS if callable(handler := signal.getsignal(n))}
    try:
        for number in handlers:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


class Adapters:
    """The adapters of one model: that of its own context, with R folded into B, and the one of all engines.

    Make it before the first context, since llama.cpp sizes a context's graph for the adapters that exist
    then, and free it after the contexts and before the model. An R of zeros takes no adapter: the base, bit
    for bit.

    Attributes:
        factors: whose A and B they have.
        lock: held while adapters are loaded or freed, and while llama.cpp walks through the list of them: as
            it makes a context, and as one computes with other adapters than before (see `computing`). A
            thread may take it again.
        modules: address of a tensor A of the engines' adapter -> number of its module. The first engine
            finds them, under `lock`.

    BaseMismatchError: llama.cpp refuses the factors for this model, a `llama_model`.
    """

    def __init__(self, model: Any, factors: Factors) -> None:
        self.factors, self.lock = factors, threading.RLock()
        self.modules: dict[int, int] = {}
        self._model, self._images = model, _Images(factors)
        self._whole: Adapter | None = None
        self._laid_out: set[int] = set()  # addresses of contexts that have computed with their adapters
        self._key = b""  # shape and bytes of the R in `_folded`
        rank = min(RANK, factors.rank)  # that of most vectors, whose image is needed anyhow
        with self.lock:
            self._folded = self._load(
                self._images.of(np.zeros((len(factors.modules), rank, rank), np.float32))
            )

    def apply(
        self, context: Any, r: NDArray[np.float32] | None, others: Sequence[tuple[Adapter, float]] = ()
    ) -> None:
        """Give the model's own context, which does not compute now, its R, float32 [M, p, q]; None: the base.

        `others` are adapters of the caller's own, with their scales, that stay in force. TinyLoraError:
        llama.cpp refuses; the R before stays in force.
        """
        key = b"" if r is None or not r.any() else repr(r.shape).encode() + r.astype(np.float32).tobytes()
        if not key or r is None:
            self.set(context, others)
            return
        with self.lock:
            unused = folded = self._folded
            if key != self._key:
                unused = folded = self._load(self._images.of(r))
            try:
                self.set(context, [(folded, 1.0), *others])
                if folded is not self._folded:
                    unused, self._folded, self._key = self._folded, folded, key
            finally:
                if unused is not self._folded:
                    _free(unused)

    def whole(self) -> Adapter:
        """Return the adapter (A, B) that every engine has, loaded once; `lock` is held.

        Its rank is P: A has zeros for rows beyond Q.
        """
        if self._whole is None:
            self._whole = self._load(self._images.whole())
        return self._whole

    def set(self, context: Any, active: Sequence[tuple[Adapter, float]]) -> None:
        """Set a context's adapters and their scales. TinyLoraError: llama.cpp refuses."""
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * len(active))(*(a for a, _ in active))
        scales = (ctypes.c_float * len(active))(*(s for _, s in active))
        self._laid_out.discard(_address(context))
        if code := llama_cpp.llama_set_adapters_lora(context, adapters, len(active), scales):
            raise TinyLoraError(f"llama.cpp refused to set {len(active)} adapters (code {code})")

    def computing(self, context: Any) -> AbstractContextManager[Any]:
        """Return what a context has to compute in: `lock`, where it has other adapters than before."""
        address = _address(context)
        if address in self._laid_out:
            return nullcontext()
        self._laid_out.add(address)
        return self.lock

    def free(self) -> None:
        """Free every adapter."""
        with self.lock:
            for adapter in filter(None, (self._folded, self._whole)):
                _free(adapter)
            self._folded = self._whole = None

    def _load(self, image: NDArray[np.uint8]) -> Adapter:
        with signals_wait():
            adapter = _from_memory(self._model, image)
        if not adapter:
            raise BaseMismatchError(
                "llama.cpp refused the adapter that was built from the factors: its modules or their shapes "
                "are not those of the loaded model (verbose=True shows which)"
            )
        return adapter


def _from_memory(model: Any, image: NDArray[np.uint8]) -> Adapter | None:
    if not _HAS_FMEMOPEN:
        handle, path = tempfile.mkstemp(suffix=".gguf")  # mode 0600: no other user reads or changes it
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(image.data)
            return llama_cpp.llama_adapter_lora_init(model, path.encode())
        finally:
            os.unlink(path)
    assert _libc is not None
    memory = _libc.fmemopen(image.ctypes.data, image.nbytes, b"rb")
    if not memory:
        raise MemoryError("fmemopen failed")
    try:
        return llama_cpp.llama_adapter_lora_init_from_file_ptr(model, memory)
    finally:
        _libc.fclose(memory)


class _Images:
    """LoRA adapters (A, B R) as the bytes of GGUF files: an image for each rank q, for any outputs of R.

    A and B are float32 even where they are stored in float16: ggml would round activations to the type of A.
    All B of one shape are one array, so that one product folds R into them. They are transposed, so that only
    the leading outputs are kept and read: 64 outputs of a model of 0.5B take 78 MB.
    """

    def __init__(self, factors: Factors) -> None:
        self._factors = factors
        alike: dict[tuple[int, ...], list[int]] = {}
        for position, b in enumerate(factors.b):
            alike.setdefault(b.shape, []).append(position)
        self._alike = list(alike.values())
        self._outputs, self._b = 0, list[NDArray[np.float32]]()  # B^T of each shape, of so many outputs
        self._made: dict[int, tuple[NDArray[np.uint8], list[NDArray[np.float32]]]] = {}

    def of(self, r: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the file with R, float32 [M, p, q], in it, until the next call."""
        outputs, rank = r.shape[1:]
        if outputs > self._outputs:
            self._b = [self._stack(found, outputs) for found in self._alike]
            self._outputs = outputs
        if rank not in self._made:
            self._made[rank] = self._file(rank)
        file, folded = self._made[rank]
        product = np.multiply if outputs == 1 else np.matmul  # matmul is slow over one item
        with np.errstate(over="ignore", invalid="ignore"):  # R may be too large for the model
            for found, b, target in zip(self._alike, self._b, folded, strict=True):
                rows = _rows(b.shape[-1], outputs * rank)
                between = (1,) * (b.ndim - 2)  # axes of rows, and of experts, which share their module's R
                own = min(outputs, b.shape[-2])  # a small weight has fewer outputs
                product(
                    np.moveaxis(b.reshape(*b.shape[:-1], -1, rows)[..., :own, :, :], -3, -1),
                    r[found, :own].reshape(len(found), *between, own, rank),
                    out=target.reshape(*target.shape[:-2], -1, rows, rank),
                )
        return file

    def _stack(self, found: list[int], outputs: int) -> NDArray[np.float32]:
        """Return B^T of modules whose B have one shape: float32 [modules, .., outputs, out]."""
        parts = [self._factors.b[i][..., :outputs].swapaxes(-1, -2) for i in found]
        stack = np.empty((len(parts), *parts[0].shape), np.float32)
        for place, part in zip(stack, parts, strict=True):
            place[...] = part
        return stack

    def whole(self) -> NDArray[np.uint8]:
        """Return a file of rank P, or of a module's fewer outputs: B as it is, and A with zeros beyond Q.

        Where columns.c computes B y, B^T lies in B's place: a thread's outputs are side by side.
        """
        factors, tensors = self._factors, dict[str, NDArray[Any]]()
        for module, a, b in zip(factors.modules, factors.a, factors.b, strict=True):
            wide = np.zeros((*a.shape[:-2], b.shape[-1], a.shape[-1]), np.float32)
            wide[..., : factors.rank, :] = a
            b = np.asarray(b, np.float32)
            if b.ndim == 2 and has_operations():
                b = np.ascontiguousarray(b.T).reshape(b.shape)
            tensors |= {f"{module}.lora_a": wide, f"{module}.lora_b": b}
        return self._write(tensors)

    def _file(self, rank: int) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
        """Return a file, and for each shape of B the arrays in the file that products are written to."""
        factors, tensors, stacks = self._factors, dict[str, NDArray[Any]](), []
        for module, a in zip(factors.modules, factors.a, strict=True):
            tensors[f"{module}.lora_a"] = np.asarray(a[..., :rank, :], np.float32)
        for found in self._alike:
            stacks.append(np.zeros((*factors.b[found[0]].shape[:-1], rank), np.float32))
            tensors |= {f"{factors.modules[i]}.lora_b": stacks[-1] for i in found}
        data = self._write(tensors)
        folded, begin = list[NDArray[np.float32]](), data.nbytes
        for found, b in zip(reversed(self._alike), reversed(stacks), strict=True):
            apart = -(-b.nbytes // gguf.ALIGNMENT) * gguf.ALIGNMENT
            begin -= apart * len(found)
            folded.insert(0, np.ndarray((len(found), *b.shape), np.float32, data, begin, (apart, *b.strides)))
        return data, folded

    def _write(self, tensors: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
        metadata = [
            ("general.type", "adapter", STRING),
            ("adapter.type", "lora", STRING),
            ("adapter.lora.alpha", 0.0, FLOAT32),  # 0: the adapter's scale is used as it is
        ]
        file = io.BytesIO()
        gguf.write(file, self._factors.architecture, metadata, tensors)
        return np.frombuffer(file.getbuffer(), np.uint8)


def _rows(outputs: int, work: int) -> int:
    """Return how many of B's `outputs` rows to multiply at once, each of which is `work` multiplications: a
    divisor of `outputs`, so that all products have one shape."""
    most = min(outputs, max(_ALONE // work, 1))
    return next((rows for rows in range(most, most // 8, -1) if outputs % rows == 0), outputs)


def _address(context: Any) -> int:
    return int(ctypes.cast(context, ctypes.c_void_p).value or 0)
