"""Safetensors files: tensors read where they lie, memory-mapped, as matrices of a model's layers.

The safetensors package checks the files. It hands out no bfloat16 without torch, which an exporter must not
need, so the tensors are mapped and decoded here.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...documents import read_json
from ...errors import ExportError, MissingExtraError, UnsupportedModelError
from ...factorization import RowSource
from .dequantize import FLOAT_BYTES, PackedRows, RowDecoder, float_decoder

_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_PAIRS = np.stack([_FP4[np.arange(256) & 15], _FP4[np.arange(256) >> 4]], axis=1)
"""The two values of each byte: float32 [256, 2]."""

_SCALED = ("weight_scale_inv", "weight_scale", "qweight", "weight_packed", "absmax", "quant_state")
"""Endings of what comes with weights of FP8, GPTQ, AWQ, compressed-tensors and bitsandbytes."""


@dataclass(frozen=True)
class Half:
    """The rows of gate (0) or up (1) in a matrix that holds both, in turns or gate first; None: all rows."""

    which: int | None = None
    interleaved: bool = False

    def of(self, rows: int) -> slice:
        """Return which rows they are in a matrix of so many."""
        if self.which is None:
            return slice(None)
        if self.interleaved:
            return slice(self.which, None, 2)
        return slice(*(rows // 2 * (self.which + i) for i in (0, 1)))


WHOLE = Half()


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: its type and shape as stated, its bytes memory-mapped."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.data.size

    def matrices(
        self, module: str, half: Half = WHOLE, *, transposed: bool = False, stacked: bool = False
    ) -> list[RowSource]:
        """Return the tensor of a module as matrices [out, in] of the rows that are wanted: one, or one an
        expert where it is stacked; transposed: it is stored [in, out]."""
        decode = float_decoder(self.dtype)
        if decode is None or len(self.shape) != 2 + stacked or 0 in self.shape:
            raise UnsupportedModelError(
                f"{module} is stored in {self.path.name} as {self.dtype} of shape {self.shape}: expected "
                f"{'matrices, one an expert,' if stacked else 'a matrix'} of floats; for quantized "
                "checkpoints, or experts packed in another way, export from the GGUF"
            )
        first, second = self.shape[-2:]
        experts = self.data.reshape(-1, first, second, FLOAT_BYTES[self.dtype])
        rows = half.of(second if transposed else first)
        if transposed:
            return [_TransposedRows(expert[:, rows], decode) for expert in experts]
        return [PackedRows(expert.reshape(first, -1)[rows], second, decode) for expert in experts]


class _TransposedRows:
    """A `RowSource` over a matrix that is stored [in, out]: raw bytes, uint8 [in, out, bytes of a value]."""

    dear = True

    def __init__(self, raw: NDArray[np.uint8], decode: RowDecoder) -> None:
        self._raw, self._decode = raw, decode
        self.shape = (raw.shape[1], raw.shape[0])

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        columns = np.ascontiguousarray(self._raw[:, start:stop])
        return np.ascontiguousarray(self._decode(columns.reshape(len(columns), -1)).T)


@dataclass(frozen=True)
class Mxfp4:
    """Stacked experts in MXFP4, as gpt-oss publishes them: the tensors of their blocks and of their scales.

    Values are 4-bit floats (E2M1), 32 of which share a scale 2^(s - 127), NaN for s = 255: OCP Microscaling
    Formats 1.0, section 5. `<name>_blocks` is uint8 [experts, out, in / 32, 16], of each byte the low half
    first; `<name>_scales` is uint8 [experts, out, in / 32].
    """

    blocks: StoredTensor
    scales: StoredTensor

    @property
    def nbytes(self) -> int:
        """Bytes of blocks and scales."""
        return self.blocks.nbytes + self.scales.nbytes

    def matrices(self, module: str, half: Half) -> list[RowSource]:
        """Return the experts' matrices [out, in], or the rows of gate or of up."""
        blocks, scales = self.blocks, self.scales
        if (blocks.dtype, scales.dtype) != ("U8", "U8") or blocks.shape != (*scales.shape[:3], 16):
            raise UnsupportedModelError(
                f"{module} is stored as blocks {blocks.dtype} of shape {blocks.shape} with scales "
                f"{scales.dtype} of shape {scales.shape}: expected MXFP4 experts in bytes, [experts, out, "
                "in / 32, 16]; export from the GGUF"
            )
        rows = half.of(blocks.shape[1])
        pairs = zip(blocks.data.reshape(blocks.shape), scales.data.reshape(scales.shape), strict=True)
        return [_Mxfp4Rows(b[rows], s[rows]) for b, s in pairs]


class _Mxfp4Rows:
    """A `RowSource` over one expert."""

    dear = True

    def __init__(self, blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> None:
        self._blocks, self._scales = blocks, scales
        self.shape = (blocks.shape[0], blocks.shape[1] * 32)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        values = _PAIRS[self._blocks[start:stop]]  # [rows, in / 32, 16, 2]
        codes = self._scales[start:stop]
        scales = np.where(codes == 255, np.nan, np.ldexp(np.float32(1), codes.astype(np.int32) - 127))
        scaled = values * scales[..., None, None]
        return np.ascontiguousarray(scaled.reshape(len(values), -1), np.float32)


def shards(directory: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face directory, in order of their names."""
    index, names = directory / "model.safetensors.index.json", ["model.safetensors"]
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            if not names or not all(name == Path(name).name and "\0" not in name for name in names):
                raise ValueError("its weight_map names no files of this folder")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{index} is not a safetensors index: {error!r}") from None
    here = set(os.listdir(directory))
    missing = [name for name in names if name not in here]
    if missing:
        raise ExportError(
            f"{directory} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more of {len(names)} shards" if len(missing) > 1 else "")
            + ": expected a Hugging Face model directory with safetensors; download it again"
        )
    return [directory / name for name in names]


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, without copying its data.

    Raises:
        MissingExtraError: the safetensors package is not installed.
        ExportError: the file is damaged.
        UnsupportedModelError: it holds quantized weights.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise MissingExtraError("reading a Hugging Face directory", "safetensors", "export") from None
    try:
        with safe_open(path, framework="numpy"), open(path, "rb") as file:  # which checks all that is used
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{path} is damaged, or no safetensors file: {error}") from None
    start = 8 + int.from_bytes(buffer[:8], "little")
    header = json.loads(buffer[8:start])
    header.pop("__metadata__", None)
    if (scaled := next((name for name in header if name.endswith(_SCALED)), None)) is not None:
        raise UnsupportedModelError(
            f"{path} holds quantized weights ({scaled}), which are not read here: export from the deployed "
            "GGUF instead"
        )
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = np.frombuffer(buffer, np.uint8, end - begin, start + begin)
        found[name] = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), data)
    return found
