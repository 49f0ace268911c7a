"""`.onnx_adapter`: micro-vectors as files of ONNX Runtime's own adapter format, to bytes and back.

Stock ONNX Runtime and onnxruntime-genai load such a file in any language, with no code of ours. The format
is a FlatBuffer (identifier TORT, `adapter_schema.fbs` in ONNX Runtime's source). This module reads and
writes the one shape of it that carries a vector, and needs no engine for either.

The schema has two numbers for the application. `model_version` holds the basis: the first 4 bytes of its
digest as a big-endian signed integer. `adapter_version` holds the sequence. ONNX Runtime checks neither.
An `.onnx_adapter` has no tag: it is trusted like a raw payload.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import BasisMismatchError, FrameError, VectorError
from ..limits import DIMENSIONS
from ..vector import MicroVector
from .onnx_graph import INPUT_NAME

if TYPE_CHECKING:
    from ..basis import Basis

_IDENTIFIER = b"TORT"
_FORMAT_VERSION = 1
_FLOAT = 1  # TensorDataType.FLOAT
_FIELDS = 4  # of either table

# Where the parts lie: one vtable for both tables, which have the same layout; then what they point at.
# Vectors of 8-byte entries begin at a multiple of 8, after their 4-byte length.
_VTABLE, _ADAPTER, _PARAMETERS, _PARAMETER, _DIMS = 8, 20, 40, 48, 68
_RAW = 92
_ENTRY = 4  # bytes of an offset, of a length, and of an int


@dataclass(frozen=True)
class AdapterFile:
    """Content of an `.onnx_adapter` with one float parameter.

    Attributes:
        name: graph input that it feeds.
        values: float32, in the shape that the file states; [1, n] for a micro-vector.
        adapter_version: the application's number; a sequence for a micro-vector.
        model_version: the application's number; the basis for a micro-vector.
    """

    name: str
    values: NDArray[np.float32]
    adapter_version: int
    model_version: int


def to_adapter(vector: MicroVector, basis: Basis) -> bytes:
    """Return a micro-vector as the bytes of an `.onnx_adapter`: 111 bytes and 4 a value.

    Values travel in float32, whatever the vector's dtype.

    Raises:
        VectorError: the vector does not fit the basis.
    """
    return encode(basis.values(vector).reshape(1, -1), vector.sequence, basis_version(basis))


def from_adapter(data: bytes, basis: Basis, dtype: str = "fp32") -> MicroVector:
    """Read a micro-vector from the bytes of an `.onnx_adapter`.

    Args:
        data: the bytes.
        basis: the basis that they have to be for.
        dtype: dtype of the vector; values that it cannot carry are rounded.

    Raises:
        FrameError: the bytes are no `.onnx_adapter`, or one of something else than a micro-vector.
        BasisMismatchError: it was made for another basis.
        VectorError: it has another number of values, or rows for several users.
        NonFiniteError: a value is NaN or infinite.
    """
    found = decode(data)
    if found.name != INPUT_NAME:
        raise FrameError(f"the adapter feeds {found.name!r}, but a micro-vector feeds {INPUT_NAME!r}")
    if found.model_version != basis_version(basis):
        named = found.model_version.to_bytes(4, "big", signed=True).hex()
        raise BasisMismatchError(
            f"the adapter's model version {found.model_version} names basis {named}, but the loaded basis is "
            f"{basis.id} ({basis_version(basis)}): convert the vector that was made for this one"
        )
    if found.values.ndim != 2 or found.values.shape[0] != 1:
        raise VectorError(
            f"the adapter's values have shape {list(found.values.shape)}, but one micro-vector is "
            f"[1, {basis.size}]"
        )
    if not 0 <= found.adapter_version < 1 << 16:
        raise FrameError(
            f"the adapter's version is {found.adapter_version}, but a sequence is from 0 to 65535"
        )
    return MicroVector(basis.values(found.values), dtype, found.adapter_version)


def is_adapter(data: bytes) -> bool:
    """Tell whether bytes begin as an `.onnx_adapter` does."""
    return data[4:8] == _IDENTIFIER


def basis_version(basis: Basis) -> int:
    """Return the `model_version` of adapters for a basis: its digest's first 4 bytes, big-endian, signed."""
    return int.from_bytes(bytes.fromhex(basis.id), "big", signed=True)


def encode(values: NDArray[np.float32], adapter_version: int, model_version: int) -> bytes:
    """Return the bytes of an `.onnx_adapter` that feeds the vector's input.

    Args:
        values: float32 [rows, n].
        adapter_version: the sequence.
        model_version: the basis; see `basis_version`.
    """
    payload = np.ascontiguousarray(values, "<f4").tobytes()
    name = INPUT_NAME.encode()
    end = _RAW + _ENTRY + len(payload)
    parts = (
        (0, "<I4s", (_ADAPTER, _IDENTIFIER)),
        (_VTABLE, "<6H", (_ENTRY + 2 * _FIELDS, _ENTRY * (1 + _FIELDS), *(4, 8, 12, 16))),
        (_ADAPTER, "<4i", (_ADAPTER - _VTABLE, _FORMAT_VERSION, adapter_version, model_version)),
        (_ADAPTER + 16, "<I", (_PARAMETERS - (_ADAPTER + 16),)),
        (_PARAMETERS, "<2I", (1, _PARAMETER - (_PARAMETERS + 4))),
        (_PARAMETER, "<iI", (_PARAMETER - _VTABLE, end - (_PARAMETER + 4))),
        (_PARAMETER + 8, "<Ii", (_DIMS - (_PARAMETER + 8), _FLOAT)),
        (_PARAMETER + 16, "<I", (_RAW - (_PARAMETER + 16),)),
        (_DIMS, "<I2q", (values.ndim, *values.shape)),
        (_RAW, "<I", (len(payload),)),
        (_RAW + _ENTRY, f"{len(payload)}s", (payload,)),
        (end, f"<I{len(name) + 1}s", (len(name), name)),
    )
    out = bytearray(end + _ENTRY + len(name) + 1)
    for position, layout, fields in parts:
        struct.pack_into(layout, out, position, *fields)
    return bytes(out)


def decode(data: bytes) -> AdapterFile:
    """Take apart an `.onnx_adapter` that carries one float32 parameter, whoever wrote it.

    Raises:
        FrameError: it is something else, or damaged.
    """
    try:
        return _decode(bytes(data))
    except struct.error:
        reason = "it is cut off, or points outside itself"
    except (UnicodeDecodeError, _Malformed) as error:
        reason = str(error)
    raise FrameError(f"{len(data)} bytes are no usable .onnx_adapter: {reason}. Convert the vector again")


class _Malformed(Exception):  # noqa: N818 - becomes a FrameError
    pass


def _decode(data: bytes) -> AdapterFile:
    if not is_adapter(data):
        raise _Malformed(f"bytes 4 to 8 are {data[4:8]!r}, not {_IDENTIFIER!r}")
    adapter = _Table(data, _follow(data, 0))
    version = adapter.integer(0)
    if version != _FORMAT_VERSION:
        raise _Malformed(f"its format version is {version}, and this release reads {_FORMAT_VERSION}")
    parameters = adapter.target(3)
    (count,) = struct.unpack_from("<I", data, parameters)
    if count != 1:
        raise _Malformed(f"it carries {count} parameters, and a micro-vector is one")
    parameter = _Table(data, _follow(data, parameters + _ENTRY))
    if parameter.integer(2) != _FLOAT:
        raise _Malformed(f"its parameter has type {parameter.integer(2)}, not {_FLOAT} (float)")
    name = _block(data, parameter.target(0), 1).decode()
    dims = np.frombuffer(_block(data, parameter.target(1), 8), "<i8")
    if len(dims) > DIMENSIONS or (dims < 1).any():  # without entries, a dimension may be of any size
        raise _Malformed(f"its shape is {dims[:DIMENSIONS].tolist()}, of {len(dims)} dimensions")
    payload = _block(data, parameter.target(3), 1)
    count = 1
    for dim in dims.tolist():
        count *= dim
    if 4 * count != len(payload):
        raise _Malformed(f"its shape is {dims.tolist()}, but its data have {len(payload)} bytes")
    values = np.frombuffer(payload, "<f4").astype(np.float32).reshape(dims.tolist())
    return AdapterFile(name, values, adapter.integer(1), adapter.integer(2))


class _Table:
    """FlatBuffer table whose fields are found by number, through its vtable."""

    def __init__(self, data: bytes, position: int) -> None:
        (back,) = struct.unpack_from("<i", data, position)
        self._data, self._position, self._vtable = data, position, position - back
        if self._vtable < 0:
            raise _Malformed("a table's layout lies outside the file")
        (self._size,) = struct.unpack_from("<H", data, self._vtable)

    def _field(self, number: int) -> int:
        slot = _ENTRY + 2 * number
        if slot + 2 > self._size:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, self._vtable + slot)
        return self._position + offset if offset else 0

    def integer(self, number: int) -> int:
        place = self._field(number)
        value: int = struct.unpack_from("<i", self._data, place)[0] if place else 0
        return value

    def target(self, number: int) -> int:
        place = self._field(number)
        if not place:
            raise _Malformed(f"it lacks field {number} of a table")
        return _follow(self._data, place)


def _follow(data: bytes, place: int) -> int:
    (offset,) = struct.unpack_from("<I", data, place)
    return place + int(offset)


def _block(data: bytes, place: int, entry: int) -> bytes:
    (count,) = struct.unpack_from("<I", data, place)
    block = data[place + _ENTRY : place + _ENTRY + count * entry]
    if len(block) != count * entry:
        raise _Malformed("it is cut off, or points outside itself")
    return block
