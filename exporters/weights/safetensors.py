"""Safetensors files: tensors read where they lie, memory-mapped, and float32 tensors written.

The safetensors package reads neither bfloat16 nor float8 without torch, which an exporter must not need.
Format: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...documents import parse_json, read_json
from ...errors import ExportError, UnsupportedModelError
from ...factorization import RowSource
from ...limits import DIMENSIONS, ENTRIES, HEADER_BYTES, TENSORS, overlap
from ...system import atomic_write
from .dequantize import FLOAT_BYTES, PackedRows, RowDecoder, float_decoder

_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_PAIRS = np.stack([_FP4[np.arange(256) & 15], _FP4[np.arange(256) >> 4]], axis=1)
"""The two values of each byte: float32 [256, 2]."""


@dataclass(frozen=True)
class Half:
    """The rows of gate or of up in a matrix that holds both.

    Attributes:
        which: 0 for gate, 1 for up, None for all rows.
        interleaved: gate and up take turns row by row; otherwise gate comes first.
    """

    which: int | None = None
    interleaved: bool = False

    def of(self, rows: int) -> slice:
        """Return which rows they are in a matrix of so many."""
        if self.which is None:
            return slice(None)
        return (
            slice(self.which, None, 2)
            if self.interleaved
            else slice(*(rows // 2 * (self.which + i) for i in (0, 1)))
        )


WHOLE = Half()


class StoredTensor:
    """One tensor of a safetensors file, memory-mapped."""

    def __init__(self, path: Path, dtype: str, shape: Sequence[int], data: NDArray[np.uint8]) -> None:
        self.dtype, self.shape = dtype, tuple(shape)
        self._path, self._dtype, self._shape, self._data = path, dtype, self.shape, data
        self.nbytes = data.size

    def matrices(
        self, module: str, half: Half = WHOLE, *, transposed: bool = False, stacked: bool = False
    ) -> list[RowSource]:
        """Return the tensor as matrices [out, in]: one, or one an expert.

        Args:
            module: whose weight it is, for messages.
            half: the rows that are wanted.
            transposed: it is stored [in, out].
            stacked: it has a leading axis for experts.
        """
        decode = float_decoder(self._dtype)
        if decode is None or len(self._shape) != 2 + stacked or 0 in self._shape:
            raise UnsupportedModelError(
                f"{module} is stored in {self._path.name} as {self._dtype} of shape {self._shape}: expected "
                f"{'matrices, one an expert,' if stacked else 'a matrix'} of floats; for quantized "
                "checkpoints, or experts packed in another way, export from the GGUF"
            )
        size, first, second = FLOAT_BYTES[self._dtype], *self._shape[-2:]
        if self._data.size != math.prod(self._shape) * size:
            raise ExportError(
                f"{self._path} is damaged: {module} has {self._data.size} bytes, but shape {self._shape} "
                f"in {self._dtype} takes {math.prod(self._shape) * size}"
            )
        experts = self._data.reshape(-1, first, second, size)
        rows = half.of(second if transposed else first)
        if transposed:
            return [_TransposedRows(expert[:, rows], decode) for expert in experts]
        return [PackedRows(expert.reshape(first, -1)[rows], second, decode) for expert in experts]

    def codes(self, module: str) -> NDArray[np.uint8]:
        """Return a tensor of bytes as it is stored."""
        if self._dtype != "U8" or self._data.size != math.prod(self._shape):
            raise UnsupportedModelError(
                f"{module} is stored in {self._path.name} as {self._dtype} of shape {self._shape}: expected "
                "the bytes of MXFP4 blocks; export from the GGUF"
            )
        return self._data.reshape(self._shape)

    def array(self, name: str) -> NDArray[np.float32]:
        """Return the whole tensor as float32, whatever its shape."""
        decode = float_decoder(self._dtype)
        if decode is None or self._data.size != math.prod(self._shape) * FLOAT_BYTES[self._dtype]:
            raise ExportError(
                f"{name} in {self._path} has {self._data.size} bytes in {self._dtype} of shape "
                f"{self._shape}: expected floats, as many as the shape says"
            )
        return decode(self._data.reshape(1, -1)).reshape(self._shape)


class _TransposedRows:
    """A `RowSource` over a matrix that is stored [in, out]: raw bytes, uint8 [in, out, bytes of a value]."""

    dear = True

    def __init__(self, raw: NDArray[np.uint8], decode: RowDecoder) -> None:
        self._raw, self._decode = raw, decode
        self.shape = (raw.shape[1], raw.shape[0])

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start .. stop-1 as float32 [stop - start, in]."""
        columns = np.ascontiguousarray(self._raw[:, start:stop])
        return np.ascontiguousarray(self._decode(columns.reshape(len(columns), -1)).T)


class Mxfp4:
    """Stacked experts in MXFP4, as gpt-oss publishes them: the tensors of their blocks and of their scales.

    Values are 4-bit floats (E2M1), 32 of which share a scale 2^(s - 127), NaN for s = 255: OCP Microscaling
    Formats 1.0, section 5. `<name>_blocks` is uint8 [experts, out, in / 32, 16], of each byte the low half
    first; `<name>_scales` is uint8 [experts, out, in / 32].
    """

    def __init__(self, blocks: StoredTensor, scales: StoredTensor) -> None:
        self._blocks, self._scales = blocks, scales
        self.nbytes = blocks.nbytes + scales.nbytes

    def matrices(self, module: str, half: Half) -> list[RowSource]:
        """Return the experts' matrices [out, in], or the rows of gate or of up."""
        blocks, scales = self._blocks.codes(module), self._scales.codes(module)
        if blocks.ndim != 4 or blocks.shape != (*scales.shape, 16):
            raise UnsupportedModelError(
                f"{module} is stored as blocks of shape {blocks.shape} with scales of shape {scales.shape}: "
                "expected MXFP4 experts, [experts, out, in / 32, 16]; export from the GGUF"
            )
        rows = half.of(blocks.shape[1])
        return [_Mxfp4Rows(b[rows], s[rows]) for b, s in zip(blocks, scales, strict=True)]


class _Mxfp4Rows:
    """A `RowSource` over one expert."""

    dear = True

    def __init__(self, blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> None:
        self._blocks, self._scales = blocks, scales
        self.shape = (blocks.shape[0], blocks.shape[1] * 32)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows start .. stop-1 as float32 [stop - start, in]."""
        values = _PAIRS[self._blocks[start:stop]]  # [rows, in / 32, 16, 2]
        codes = self._scales[start:stop]
        scales = np.where(codes == 255, np.nan, np.ldexp(np.float32(1), codes.astype(np.int32) - 127))
        scaled = values * scales[..., None, None]
        return np.ascontiguousarray(scaled.reshape(len(values), -1), np.float32)


def shards(directory: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face directory, in order of their names."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            if not names or not all(isinstance(name, str) and _is_name(name) for name in names):
                raise ValueError("its weight_map names no files of this folder")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{index} is not a safetensors index: {error!r}") from None
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise ExportError(
            f"{directory} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more of {len(names)} shards" if len(missing) > 1 else "")
            + ": expected a Hugging Face model directory with safetensors; download it again"
        )
    return [directory / name for name in names]


def _is_name(name: str) -> bool:
    """Whether it names a file of a folder on any system: those that count do so in bytes, and take 255."""
    bare = name not in ("", "..") and Path(name).name == name and "\0" not in name
    return bare and len(os.fsencode(name)) <= 255


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, without copying its data.

    Raises:
        ExportError: the file is damaged.
        UnsupportedModelError: it holds quantized weights.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        if size < 8:
            raise ExportError(f"{path} is not a safetensors file: it has {size} bytes")
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (length,) = struct.unpack_from("<Q", buffer, 0)
    if length > min(size - 8, HEADER_BYTES):
        raise ExportError(f"{path} is damaged: it declares a header of {length} bytes, but has {size} bytes")
    try:
        header: dict[str, Any] = parse_json(buffer[8 : 8 + length], limit=HEADER_BYTES)
        header.pop("__metadata__", None)
        entries = []
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if not isinstance(entry["dtype"], str):
                raise TypeError(f"the dtype of {name} is no text")
            entries.append((name, entry["dtype"], entry["shape"], begin, end))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is damaged: its header cannot be read ({error!r})") from None
    _refuse_scaled(path, header)
    if len(entries) > TENSORS:
        raise ExportError(f"{path} holds {len(entries):,} tensors: at most {TENSORS:,} are read")
    start = 8 + length
    result = {}
    for name, dtype, shape, begin, end in entries:
        numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ExportError(f"{path} is damaged: {name} has shape {shape!r} at bytes {begin!r} to {end!r}")
        if not 0 <= begin <= end <= size - start:
            raise ExportError(
                f"{path} is truncated: {name} lies at bytes {begin} to {end}, but there are {size - start}"
            )
        if len(shape) > DIMENSIONS:
            raise ExportError(f"{path} is damaged: {name:.80} has {len(shape)} dimensions")
        if math.prod(number or 1 for number in shape) > ENTRIES:  # without entries, a number may be any
            raise ExportError(f"{path} is damaged: {name:.80} has shape {shape}, more than any tensor's")
        result[name] = StoredTensor(
            path, dtype, shape, np.frombuffer(buffer, np.uint8, end - begin, start + begin)
        )
    both = overlap([(begin, end, name) for name, _, _, begin, end in entries])
    if both:
        raise ExportError(f"{path} is damaged: {both[0]:.80} and {both[1]:.80} lie over the same bytes")
    return result


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write float32 tensors, atomically (https://huggingface.co/docs/safetensors, "Format")."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in sorted(tensors.items()):
        begin, end = end, end + 4 * array.size
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in sorted(tensors.items()):
            file.write(np.ascontiguousarray(array, "<f4").tobytes())


_PACKED = ("weight_scale_inv", "weight_scale", "qweight", "weight_packed", "absmax", "quant_state")
"""Endings of what comes with weights of FP8, GPTQ, AWQ, compressed-tensors and bitsandbytes."""


def _refuse_scaled(path: Path, header: dict[str, Any]) -> None:
    scaled = next((n for n in header if n.endswith(_PACKED)), None)
    if scaled is not None:
        raise UnsupportedModelError(
            f"{path} holds quantized weights ({scaled}), which are not read here: export from the deployed "
            "GGUF instead"
        )
