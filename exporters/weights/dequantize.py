"""Rows of a stored weight as float32, by the fastest exact routine that is there; its distance from factors.

ggml's own C routines (through llama-cpp-python's library, by ctypes) are 4 to 50 times faster than the numpy
ones of `gguf.quants`. For a tensor they are used only where they gave the same bits as `gguf.quants` on its
first rows.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from math import inf
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tinylora_edge.factorization import gap

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a value of each safetensors dtype that is read."""

_PROBE_ROWS = 2  # rows on which both routines are compared
_ROWS = 512  # rows of a weight that are in memory as floats at a time
_NAMES = "libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll"

RowDecoder = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Decodes raw rows: uint8 [n, row bytes] -> float32 [n, values]."""


class Matrix:
    """A stored matrix, uint8 [out, row bytes], that hands out its rows as float32, some at a time.

    Attributes:
        shape: (out, in).
    """

    def __init__(self, raw: NDArray[np.uint8], n_in: int, decode: RowDecoder) -> None:
        self._raw, self._decode = raw, decode
        self.shape = (len(raw), n_in)

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows start .. stop-1, or all of them, as float32 [rows, in]."""
        return self._decode(self._raw[start:stop])


def distance(a: NDArray[np.float32], b: NDArray[np.float32], matrices: Sequence[Matrix]) -> float:
    """Return how far a weight is from its factors: `gap` of the worst matrix; inf where shapes differ.

    A, [q, in], has orthonormal rows; B, [out, p], has its rows in the weight's order; both may have a leading
    axis for experts, of whose `matrices` the weight then has one each.
    """
    shape = (b.shape[-2], a.shape[-1])
    if any(matrix.shape != shape for matrix in matrices) or len(matrices) != a[..., 0, 0].size:
        return inf
    worst = 0.0
    pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), matrices, strict=True)
    for one_a, one_b, matrix in pairs:
        v = one_a.astype(np.float32).T
        starts = range(0, shape[0], _ROWS)
        product = np.concatenate([matrix.rows(i, i + _ROWS) @ v for i in starts])
        worst = max(worst, gap(product, one_b.astype(np.float32)))
    return worst


def ggml_decoder(kind: gguf.GGMLQuantizationType, sample: NDArray[np.uint8]) -> RowDecoder:
    """Return the decoder for a GGML type. On `sample`, raw rows of the tensor, ggml's routine is checked."""
    if kind == gguf.GGMLQuantizationType.F32:
        return lambda raw: raw.view("<f4")
    probe = np.ascontiguousarray(sample[:_PROBE_ROWS])
    expected = gguf.dequantize(probe, kind)
    fast = _ggml_routine(kind)
    if fast is not None and np.array_equal(fast(probe), expected, equal_nan=True):
        return fast
    return lambda raw: gguf.dequantize(raw, kind)


def float_decoder(dtype: str) -> RowDecoder | None:
    """Return the decoder for a safetensors float dtype; None for another dtype."""
    if dtype == "BF16":
        return lambda raw: (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype not in FLOAT_BYTES:
        return None
    return lambda raw: raw.view(f"<f{FLOAT_BYTES[dtype]}").astype(np.float32, copy=False)


class _TypeTraits(ctypes.Structure):
    """The beginning of ggml's struct ggml_type_traits (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_values", ctypes.c_int64),
        ("block_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def _ggml_routine(kind: gguf.GGMLQuantizationType) -> RowDecoder | None:
    """Return the routine of ggml's base library in llama-cpp-python, without importing that package; None
    where there is none."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    found = next((path for name in _NAMES if (path := folder / name).exists()), None)
    if found is None:
        return None
    try:
        get_traits = ctypes.CDLL(str(found)).ggml_get_type_traits
    except (OSError, AttributeError):
        return None
    get_traits.restype, get_traits.argtypes = ctypes.POINTER(_TypeTraits), [ctypes.c_int]
    traits, sizes = get_traits(int(kind)).contents, gguf.GGML_QUANT_SIZES[kind]
    # Another ggml may lay the structure out differently; these fields would then not agree.
    if (traits.block_values, traits.block_bytes) != sizes or not traits.to_float:
        return None
    to_float = traits.to_float

    def decode(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
        raw = np.ascontiguousarray(raw)
        out = np.empty((len(raw), raw.shape[1] // sizes[1] * sizes[0]), np.float32)
        to_float(raw.ctypes.data, out.ctypes.data, out.size)
        return out

    return decode
