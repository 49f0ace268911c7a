"""Frames: the wire form of a micro-vector (docs/FORMAT.md, "Frames").

Little-endian. Byte 0: version (high nibble), dtype + 4 * tag kind (low nibble); bytes 1-4: the first
4 bytes of the basis digest; bytes 5-6: sequence; in version 3 bytes 7-8: the last day; then the values, then
the tag. From version 2 on the tag is over the stream's name too, which is not sent. A raw payload is the
values alone. Frames have odd length and raw payloads even length, so neither is taken for the other.
This module knows bytes, not policy: what may be applied is decided in `policy`.

Values in int8 are n numbers of 8 bits and one scale of 24, v = scale * q. The scale is the upper 24 bits of a
float32, sign included: 16 significant bits. Its product with a q of 8 bits is therefore exact in float32, and
every reader has the same values. A writer may choose any scale; this one chooses that of the least squared
error.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    BasisMismatchError,
    ChecksumError,
    FrameError,
    NonFiniteError,
    SignatureError,
    VectorError,
)
from ..limits import STREAM_CHARACTERS
from . import tags

PLAIN, BOUND, DATED = 1, 2, 3
"""Versions: 1, of any stream; 2, of one stream; 3, of one stream and with a last day."""

VERSIONS: tuple[int, ...] = (PLAIN, BOUND, DATED)
HEADER_BYTES = {PLAIN: 7, BOUND: 7, DATED: 9}
DTYPES: tuple[str, ...] = ("fp32", "bf16", "fp16", "int8")
"""dtypes of values, in the order of their codes. Version 1 has no int8."""
RAW_DTYPES: tuple[str, ...] = ("fp32", "bf16")
"""dtypes that a raw payload may have."""

SCALE_BYTES = 3

_LOWEST, _HIGHEST = -128, 127
_EXACT_VALUES = 1 << 12  # up to so many every scale that changes a q is looked at: 128 a value
_CANDIDATES = 8
_AT_ONCE = 1 << 20
_LARGEST = float(np.finfo(np.float32).max)

_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Frame:
    """The parts of a frame or of a raw payload, decoded but not yet trusted."""

    values: NDArray[np.float32]  # [n]
    dtype: str
    sequence: int | None  # None: a raw payload
    kind: int | None  # tag kind; None: a raw payload
    body: bytes  # all bytes before the tag
    tag: bytes
    version: int | None = None  # None: a raw payload
    until: int | None = None  # the number of the last day


def round_to(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Round float32 values to the nearest ones (ties to even) that `dtype` can carry.

    In int8 they are rounded together, with the least squared error; what is not finite stays so.
    """
    if dtype == "int8" and not np.isfinite(values).all():
        return values.copy()
    return decode_values(encode_values(values, dtype), dtype, len(values))


def finite(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Round values [n] as `round_to` does.

    Raises:
        NonFiniteError: one is NaN or infinite, or too large for the dtype.
    """
    rounded = round_to(values, dtype)
    if not np.isfinite(rounded).all():
        index = int(np.flatnonzero(~np.isfinite(rounded))[0])
        raise NonFiniteError(
            f"value {index} is {values[index]}, which is not finite in {dtype}: every value must be"
        )
    return rounded


def encode_values(values: NDArray[np.float32], dtype: str) -> bytes:
    """Return n values as `payload_bytes` bytes, little-endian."""
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
    if dtype == "int8":
        scale, q = quantize(values)
        return scale + q.tobytes() + bytes(_padding(len(values)))
    raise VectorError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")


def decode_values(data: bytes, dtype: str, size: int) -> NDArray[np.float32]:
    """Return the float32 values [size] of a payload of the right length."""
    if dtype == "bf16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float32)
    if dtype == "int8":
        return dequantize(data[:SCALE_BYTES], np.frombuffer(data, np.int8, size, SCALE_BYTES))
    return np.frombuffer(data, "<f4" if dtype == "fp32" else "<f2").astype(np.float32)


def content(key: str, values: NDArray[np.float32], dtype: str) -> str:
    """Return what stands for values and their dtype in a policy's memory: 32 hexadecimal digits.

    Nothing stands for them without a key, since whoever has none can choose any sequence.
    """
    if not key:
        return ""
    data = encode_values(values.reshape(-1), "fp32" if dtype == "int8" else dtype)
    return hashlib.sha256(dtype.encode() + b"\n" + data).hexdigest()[:32]


def message(version: int | None, stream: str, digest: bytes, body: bytes) -> bytes:
    """Return what the tag of a frame is computed over.

    Args:
        version: of the frame.
        stream: name of its stream; version 1 has none.
        digest: of the basis, 32 bytes.
        body: all bytes of the frame before the tag.

    Raises:
        FrameError: the name is no text that UTF-8 can write, or longer than a policy keeps.
    """
    return (b"" if version == PLAIN else bound(b"tinylora stream 2\n", stream)) + digest + body


def check_tag(received: Frame, stream: str, digest: bytes, keys: Sequence[tags.Verifier]) -> str:
    """Return the id of the key under which a frame's tag verifies; empty for a checksum or no tag.

    What makes vectors makes them of the default stream. Who sends one to a user as it came is told how to
    mend it, and not that it was damaged.

    Args:
        received: the frame, or a raw payload.
        stream: that it is taken for; "" is the default one.
        digest: of the basis, 32 bytes.
        keys: of which one has to verify it.

    Raises:
        ChecksumError: the checksum is another one.
        SignatureError: no key made the tag.
    """
    if received.kind is None:
        return ""
    kind, tag, body = received.kind, received.tag, received.body
    other = f", or is of another stream than {stream!r}" if stream else ", or is of a stream with a name"
    try:
        return tags.check(kind, message(received.version, stream, digest, body), tag, keys, other=other)
    except (ChecksumError, SignatureError) as error:
        if not stream:
            raise
        try:
            tags.check(kind, message(received.version, "", digest, body), tag, keys)
        except (ChecksumError, SignatureError):
            raise error from None
        raise type(error)(
            f"the frame is of another stream than {stream!r}: of the default one; make it for {stream!r} "
            f"(tinylora-edge pack --stream {stream!r})"
        ) from None


def bound(domain: bytes, stream: str) -> bytes:
    """Return the 32 bytes that bind a message to a stream: SHA-256 of what kind it is of, and of the name.

    Raises:
        FrameError: the name is no text that UTF-8 can write, or longer than a policy keeps.
    """
    if len(stream) > STREAM_CHARACTERS:
        raise FrameError(
            f"the stream {stream[:40]!r}... has {len(stream)} characters, and a name has at most "
            f"{STREAM_CHARACTERS}: no device would accept a frame of it. Choose a shorter one"
        )
    try:
        return hashlib.sha256(domain + stream.encode()).digest()
    except UnicodeEncodeError:
        raise FrameError(f"the stream {stream[:40]!r} is no name: it has parts of characters") from None


def encode(
    values: NDArray[np.float32],
    dtype: str,
    sequence: int,
    digest: str,
    signer: tags.Signer,
    *,
    stream: str = "",
    until: int | None = None,
    version: int | None = None,
) -> bytes:
    """Return the frame of values [n].

    Args:
        values: that `dtype` can carry.
        dtype: one of `DTYPES`.
        sequence: 0 to 65535.
        digest: of the basis, in hexadecimal.
        signer: makes the tag.
        stream: name of the stream.
        until: number of the last day, see `days`.
        version: by default 3 where there is a last day, and 2 otherwise.

    Raises:
        FrameError: the sequence does not fit 16 bits, the version has no place for what it shall hold, or
            the stream's name is none that a policy keeps.
    """
    if not 0 <= sequence < 1 << 16:
        raise FrameError(f"sequence {sequence} does not fit a frame: it must be from 0 to 65535")
    if version is None:
        version = BOUND if until is None else DATED
    if version not in VERSIONS:
        raise FrameError(f"there is no version {version!r:.20} of frames: choose 1, 2 or 3")
    if (version == DATED) != (until is not None):
        raise FrameError(
            f"a frame of version {version} has no last day: leave it out, or the version"
            if until is not None
            else "a frame of version 3 has a last day: pass until=..., or leave the version out"
        )
    if version == PLAIN and dtype == "int8":
        raise FrameError("frames of version 1 have no int8: use version 2")
    basis = bytes.fromhex(digest)
    first = version << 4 | DTYPES.index(dtype) | signer.kind << 2
    day = b"" if until is None else until.to_bytes(2, "little")
    body = struct.pack("<B4sH", first, basis[:4], sequence) + day + encode_values(values, dtype)
    return body + signer.sign(message(version, stream, basis, body))


def decode(data: bytes, size: int, digest: str, versions: Collection[int] = VERSIONS) -> Frame:
    """Take apart a frame or a raw payload of `size` values for the basis with that digest.

    A raw payload of 2-byte values is read as bf16, the 2-byte dtype that keeps float32's range.

    Raises:
        FrameError: empty, of a wrong length, of an unknown dtype or tag kind, or of a version that is not
            among those wanted.
        BasisMismatchError: the frame names another basis.
    """
    length = len(data)
    lengths = f"{_lengths(size)} for {size} values"
    if length == 0:
        raise FrameError(f"the vector is empty: expected {lengths}")
    if length % 2 == 0:
        if data[0] >> 4 in VERSIONS and data[1:5] == bytes.fromhex(digest[:8]):
            raise FrameError(
                f"{length} bytes are a frame of this basis that was cut or padded on its way, not a raw "
                f"payload: expected {lengths}"
            )
        for dtype in RAW_DTYPES:
            if length == payload_bytes(size, dtype):
                return Frame(decode_values(data, dtype, size), dtype, None, None, bytes(data), b"")
        raise FrameError(
            f"{length} bytes are no vector for this basis: neither a frame nor its text form, nor a raw "
            f"payload: expected {lengths}"
        )
    if length > longest(size) or length < HEADER_BYTES[PLAIN]:
        raise FrameError(
            f"{length} bytes are no vector for this basis: neither a frame nor its text; expected {lengths}"
        )
    version, dtype, kind = form(data)
    if version not in versions:
        wanted = " and ".join(map(str, sorted(versions)))
        raise FrameError(f"the frame has version {version}, but the policy accepts only {wanted}")
    if data[1:5] != bytes.fromhex(digest[:8]):
        raise BasisMismatchError(
            f"the frame is for basis {data[1:5].hex()}, but the loaded basis is {digest[:8]}: "
            "use the vector that was made for this one (or the frame was damaged on its way)"
        )
    expected = frame_bytes(size, dtype, kind, version)
    if length != expected:
        raise FrameError(
            f"the frame has {length} bytes, but {size} values in {dtype} with {tags.NAMES[kind]} "
            f"take {expected}: it was cut or padded on its way"
        )
    at = HEADER_BYTES[version]
    end = length - tags.SIZES[kind]
    body, tag = bytes(data[:end]), bytes(data[end:])
    if dtype == "int8" and any(body[end - _padding(size) :]):
        raise FrameError(f"the byte that fills the frame up is {body[-1]:#04x}, not 0: it was damaged")
    sequence = sequence_of(data)
    until = int.from_bytes(data[7:9], "little") if version == DATED else None
    return Frame(decode_values(body[at:], dtype, size), dtype, sequence, kind, body, tag, version, until)


def form(data: bytes) -> tuple[int, str, int]:
    """Return the version, the dtype and the tag kind that a frame's first byte names.

    Raises:
        FrameError: this release does not know them.
    """
    version, code, kind = data[0] >> 4, data[0] & 3, data[0] >> 2 & 3
    if version not in VERSIONS:
        raise FrameError(f"the frame has version {version}, but this release reads versions 1, 2 and 3")
    if kind not in tags.SIZES or (version == PLAIN and DTYPES[code] == "int8"):
        raise FrameError(f"the frame's first byte {data[0]:#04x} names an unknown dtype {code} or tag {kind}")
    return version, DTYPES[code], kind


def sequence_of(data: bytes) -> int:
    """Return the sequence that a header says. It is in the same place in every version, and in statements."""
    return int.from_bytes(data[5:7], "little")


def payload_bytes(size: int, dtype: str) -> int:
    """Length of `size` values. That of int8 is even, as all are: a zero byte fills it up where it has to."""
    if dtype == "int8":
        return SCALE_BYTES + size + _padding(size)
    return size * _ITEM_BYTES[dtype]


def frame_bytes(size: int, dtype: str, kind: int, version: int = BOUND) -> int:
    """Length of a frame of `size` values."""
    return HEADER_BYTES[version] + payload_bytes(size, dtype) + tags.SIZES[kind]


def longest(size: int) -> int:
    """Length of the longest frame of `size` values."""
    return max(frame_bytes(size, dtype, tags.ED25519, DATED) for dtype in DTYPES)


def counts(payload: int, dtype: str) -> list[int]:
    """Return how many values so many bytes may be; one number but in int8, which may be filled up."""
    if dtype == "int8":
        return [
            n
            for n in (payload - SCALE_BYTES - 1, payload - SCALE_BYTES)
            if payload == payload_bytes(n, dtype) and n > 0
        ]
    return [payload // _ITEM_BYTES[dtype]] if payload > 0 and payload % _ITEM_BYTES[dtype] == 0 else []


def _padding(size: int) -> int:
    return 1 - size % 2


def _lengths(size: int) -> str:
    frames = sorted({frame_bytes(size, d, k) for d in DTYPES for k in tags.SIZES})
    return (
        f"{size * 4} or {size * 2} bytes raw, or a frame of {', '.join(map(str, frames))} bytes (2 more with "
        "a last day)"
    )


def quantize(values: NDArray[np.float32]) -> tuple[bytes, NDArray[np.int8]]:
    """Return the scale (3 bytes) and q (int8 [n]) that come nearest to values [n] in squared error.

    Of scales that come equally near, a positive one is taken, and the largest. Values that are such products
    already come back as they are. Where a value is not finite, the scale is NaN.
    """
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        return b"\x00\xc0\x7f", np.zeros(len(exact), np.int8)
    scale, q, least = 0.0, np.zeros(len(exact)), float(exact @ exact)
    for scales in _scales(exact) if least else ():
        room = np.floor(_LARGEST / np.abs(scales))  # a product that would overflow is none
        found = np.rint(exact / scales)
        found = np.clip(found, np.maximum(_LOWEST, -room), np.minimum(_HIGHEST, room))
        errors = np.square(exact - scales * found).sum(1)
        best = int(errors.argmin())
        if errors[best] < least:
            least, scale, q = float(errors[best]), float(scales[best, 0]), found[best]
    return np.float32(scale).astype("<f4").tobytes()[1:], q.astype(np.int8)


def dequantize(scale: bytes, q: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return float32 values [n]: scale * q, exactly, and no zero with a sign."""
    factor = np.frombuffer(b"\0" + scale, "<f4")[0]
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by name
        values: NDArray[np.float32] = (factor * q.astype(np.float32) + np.float32(0)).astype(np.float32)
    return values


def _scales(values: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield the scales among which the best one is, in columns: positive ones first, and large ones.

    Among them is the largest value over each q that it may have. Where the values are products already, that
    finds them; where all have one magnitude, say, any q would do but for the rounding of the scale.
    """
    parts = np.abs(values).max() / np.arange(1, -_LOWEST + 1)
    search = _turning_points if len(values) <= _EXACT_VALUES else _clipping
    for sign in (1.0, -1.0):
        scales = sign * _neighbours(np.concatenate([search(sign * values), parts]))[::-1]
        for part in np.array_split(scales, 1 + len(scales) * len(values) // _AT_ONCE):
            yield part[:, None]


def _turning_points(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the best scales > 0 of q in [-128, 127].

    As the scale falls, one |q| after the other rises by 1, at scale = |v| / (|q| + 1/2). Between two such
    points q stays, and the best scale for it is <v, q> / <q, q>, of squared error <v, v> - <v, q>^2 / <q, q>.
    Both products grow by one term at each point, so that running sums go through every q that there is.
    """
    size = np.abs(values)
    half = np.arange(-_LOWEST) + 0.5
    reachable = half < np.where(values < 0, -_LOWEST, _HIGHEST)[:, None]
    points = (size[:, None] / half)[reachable]
    order = np.argsort(-points, kind="stable")
    along = np.cumsum(np.broadcast_to(size[:, None], reachable.shape)[reachable][order])
    squares = np.cumsum(np.broadcast_to(2 * half, reachable.shape)[reachable][order])
    best = np.argsort(-(along**2 / squares), kind="stable")[:_CANDIDATES]
    scales: NDArray[np.float64] = along[best] / squares[best]
    return scales


def _clipping(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return scales > 0 under that of the largest value, for so many values that steps of 7 % miss little."""
    scales: NDArray[np.float64] = np.abs(values).max() / -_LOWEST * 0.93 ** np.arange(1, 32)
    return scales


def _neighbours(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scales of 24 bits on both sides of ones > 0, rising, each once and without 0."""
    below = np.minimum(scales, _LARGEST).astype("<f4").view("<u4") & np.uint32(0xFFFFFF00)
    both = np.concatenate([below, np.minimum(below + np.uint32(0x100), np.uint32(0x7F7FFF00))])
    return np.unique(both[both > 0]).view("<f4").astype(np.float64)
