"""`.onnx_adapter`: a micro-vector as a file of ONNX Runtime's own adapter format.

Stock ONNX Runtime and onnxruntime-genai load such a file in any language, with no code of ours. The format
is a FlatBuffer (identifier TORT, `adapter_schema.fbs` in ONNX Runtime's source); this module writes the one
shape of it that carries R, and needs no engine for it.

The schema has two numbers for the application. `model_version` holds the basis: the first 4 bytes of its
digest as a big-endian signed integer. `adapter_version` holds the sequence. ONNX Runtime checks neither, and
the file has no tag: whoever made it is trusted.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from ..basis import Basis
from ..vector import MicroVector
from .onnx_graph import INPUT_NAME, input_row

# Offsets in bytes: one vtable for both tables, which have the same layout, the tables, and what they point
# at. A FlatBuffer's vector of 8-byte entries begins at a multiple of 8, behind its length of 4 bytes.
_VTABLE, _ADAPTER, _PARAMETERS, _PARAMETER, _DIMS, _RAW = 8, 20, 40, 48, 68, 92
_FORMAT_VERSION, _FLOAT = 1, 1  # _FLOAT: TensorDataType.FLOAT


def to_adapter(vector: MicroVector, basis: Basis) -> bytes:
    """Return the R of a micro-vector as an `.onnx_adapter`, float32 [1, M P Q]."""
    row = input_row(basis.R(vector), basis.factors.shape)
    version = int.from_bytes(bytes.fromhex(basis.id), "big", signed=True)
    return encode(row[None], vector.sequence, version)


def encode(values: NDArray[np.float32], adapter_version: int, model_version: int) -> bytes:
    """Return an `.onnx_adapter` of values, float32 [rows, M P Q], and of the two version numbers."""
    payload = np.ascontiguousarray(values, "<f4").tobytes()
    name = INPUT_NAME.encode()
    end = _RAW + 4 + len(payload)
    parts = (
        (0, "<I4s", (_ADAPTER, b"TORT")),
        (_VTABLE, "<6H", (12, 20, 4, 8, 12, 16)),  # size of it, size of a table, offsets of its four fields
        (_ADAPTER, "<4i", (_ADAPTER - _VTABLE, _FORMAT_VERSION, adapter_version, model_version)),
        (_ADAPTER + 16, "<I", (_PARAMETERS - (_ADAPTER + 16),)),
        (_PARAMETERS, "<2I", (1, _PARAMETER - (_PARAMETERS + 4))),
        (_PARAMETER, "<iI", (_PARAMETER - _VTABLE, end - (_PARAMETER + 4))),
        (_PARAMETER + 8, "<Ii", (_DIMS - (_PARAMETER + 8), _FLOAT)),
        (_PARAMETER + 16, "<I", (_RAW - (_PARAMETER + 16),)),
        (_DIMS, "<I2q", (values.ndim, *values.shape)),
        (_RAW, "<I", (len(payload),)),
        (_RAW + 4, f"{len(payload)}s", (payload,)),
        (end, f"<I{len(name) + 1}s", (len(name), name)),
    )
    out = bytearray(end + 4 + len(name) + 1)
    for position, layout, fields in parts:
        struct.pack_into(layout, out, position, *fields)
    return bytes(out)
