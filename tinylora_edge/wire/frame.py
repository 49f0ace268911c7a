"""Frames: the wire form of a micro-vector (docs/FORMAT.md, "Frames").

Little-endian. Byte 0: version (high nibble), dtype + 4 * tag kind (low nibble); bytes 1-4: the first
4 bytes of the basis digest; bytes 5-6: sequence; then the values, then the tag. A raw payload is the
values alone. Frames have odd length and raw payloads even length, so neither is taken for the other.
This module knows bytes, not policy: what may be applied is decided in `vector`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import BasisMismatchError, FrameError, VectorError
from . import tags

VERSION = 1
HEADER_BYTES = 7
DTYPES: tuple[str, ...] = ("fp32", "bf16", "fp16")
"""dtypes of values, in the order of their codes."""
ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Frame:
    """The parts of a frame or of a raw payload, decoded but not yet trusted."""

    values: NDArray[np.float32]  # [n]
    dtype: str
    sequence: int | None  # None: a raw payload
    kind: int | None  # tag kind; None: a raw payload
    body: bytes  # all bytes before the tag
    tag: bytes


def round_to(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Round float32 values to the nearest ones (ties to even) that `dtype` can carry."""
    return decode_values(encode_values(values, dtype), dtype)


def encode_values(values: NDArray[np.float32], dtype: str) -> bytes:
    """Return n values as n*4 (fp32) or n*2 bytes (bf16, fp16), little-endian."""
    if dtype == "fp32":
        return values.astype("<f4").tobytes()
    if dtype == "fp16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    if dtype == "bf16":
        bits = values.astype("<f4").view("<u4").astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
        quiet_nan = (bits >> np.uint64(16)) | np.uint64(0x40)
        return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2").tobytes()
    raise VectorError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")


def decode_values(data: bytes, dtype: str) -> NDArray[np.float32]:
    """Return the float32 values [n] of a payload."""
    if dtype == "bf16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float32)
    return np.frombuffer(data, "<f4" if dtype == "fp32" else "<f2").astype(np.float32)


def encode(values: NDArray[np.float32], dtype: str, sequence: int, digest: str, signer: tags.Signer) -> bytes:
    """Return the frame of values [n].

    Raises:
        FrameError: the sequence does not fit 16 bits.
    """
    if not 0 <= sequence < 1 << 16:
        raise FrameError(f"sequence {sequence} does not fit a frame: it must be from 0 to 65535")
    basis = bytes.fromhex(digest)
    first = VERSION << 4 | DTYPES.index(dtype) | signer.kind << 2
    body = struct.pack("<B4sH", first, basis[:4], sequence) + encode_values(values, dtype)
    return body + signer.sign(basis + body)


def decode(data: bytes, size: int, digest: str) -> Frame:
    """Take apart a frame or a raw payload of `size` values for the basis with that digest.

    A raw payload of 2-byte values is read as bf16, the 2-byte dtype that keeps float32's range.

    Raises:
        FrameError: empty, of a wrong length, or of an unknown version, dtype or tag kind.
        BasisMismatchError: the frame names another basis.
    """
    length = len(data)
    lengths = f"{_lengths(size)} for {size} values"
    if length == 0:
        raise FrameError(f"the vector is empty: expected {lengths}")
    if length % 2 == 0:
        if data[0] >> 4 == VERSION and data[1:5] == bytes.fromhex(digest[:8]):
            raise FrameError(
                f"{length} bytes are a frame of this basis that was cut or padded on its way, not a raw "
                f"payload: expected {lengths}"
            )
        for dtype in ("fp32", "bf16"):
            if length == size * ITEM_BYTES[dtype]:
                return Frame(decode_values(data, dtype), dtype, None, None, bytes(data), b"")
        raise FrameError(f"{length} bytes are no raw payload for this basis: expected {lengths}")
    if length > HEADER_BYTES + 4 * size + 64 or length < HEADER_BYTES:
        raise FrameError(f"{length} bytes are no frame for this basis: expected {lengths}")
    version, code, kind = data[0] >> 4, data[0] & 3, data[0] >> 2 & 3
    if version != VERSION:
        raise FrameError(f"the frame has version {version}, but this release reads version {VERSION}")
    if code >= len(DTYPES) or kind not in tags.SIZES:
        raise FrameError(f"the frame's first byte {data[0]:#04x} names an unknown dtype {code} or tag {kind}")
    if data[1:5] != bytes.fromhex(digest[:8]):
        raise BasisMismatchError(
            f"the frame is for basis {data[1:5].hex()}, but the loaded basis is {digest[:8]}: "
            "use the vector that was made for this one (or the frame was damaged on its way)"
        )
    dtype, tag_bytes = DTYPES[code], tags.SIZES[kind]
    expected = HEADER_BYTES + size * ITEM_BYTES[dtype] + tag_bytes
    if length != expected:
        raise FrameError(
            f"the frame has {length} bytes, but {size} values in {dtype} with {tags.NAMES[kind]} "
            f"take {expected}: it was cut or padded on its way"
        )
    body, tag = bytes(data[: length - tag_bytes]), bytes(data[length - tag_bytes :])
    sequence = int.from_bytes(data[5:7], "little")
    return Frame(decode_values(body[HEADER_BYTES:], dtype), dtype, sequence, kind, body, tag)


def frame_bytes(size: int, dtype: str, kind: int) -> int:
    """Length of a frame of `size` values."""
    return HEADER_BYTES + size * ITEM_BYTES[dtype] + tags.SIZES[kind]


def _lengths(size: int) -> str:
    frames = [str(frame_bytes(size, d, k)) for d in ("fp32", "bf16") for k in tags.SIZES]
    return f"{size * 4} or {size * 2} bytes raw, or a frame of {', '.join(frames)} bytes"
