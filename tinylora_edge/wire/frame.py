"""Frames: the wire form of a micro-vector (docs/FORMAT.md, "Frames").

Little-endian. Byte 0: version (high nibble), dtype + 4 * tag kind (low nibble); bytes 1-4: the first 4 bytes
of the basis's digest; bytes 5-6: sequence; in version 3 bytes 7-8: the last day; then the values, then the
tag. The tag is over the user's name too, which is not sent. Frames have odd length.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import BasisMismatchError, ChecksumError, FrameError, SignatureError
from . import tags
from .users import encoded
from .values import DTYPES, decode_values, encode_values, is_padded, payload_bytes

BOUND, DATED = 2, 3
"""Versions: 2, and 3 with a last day."""

HEADER_BYTES = {BOUND: 7, DATED: 9}


@dataclass(frozen=True)
class Frame:
    """The parts of a frame, decoded but not yet trusted."""

    values: NDArray[np.float32]  # [n]
    dtype: str
    body: bytes  # all bytes before the tag
    tag: bytes
    sequence: int
    kind: int  # of the tag
    until: int | None = None  # the number of the last day


def message(user: str, digest: bytes, body: bytes) -> bytes:
    """Return what a tag is computed over; `body` is all before it. FrameError: the user's name is none."""
    return hashlib.sha256(b"tinylora stream 2\n" + encoded(user)).digest() + digest + body


def check_tag(received: Frame, user: str, digest: bytes, keys: Sequence[tags.Verifier]) -> str:
    """Return the id of the key under which a frame's tag verifies; empty for a checksum.

    Raises:
        ChecksumError: the checksum is another one.
        SignatureError: no key made the tag.
    """
    kind, tag, body = received.kind, received.tag, received.body
    other = f"another user than {user!r}" if user else "a user with a name"
    try:
        return tags.check(kind, message(user, digest, body), tag, keys, other=f", or is of {other}")
    except (ChecksumError, SignatureError) as error:
        if not user:
            raise
        try:  # `train` makes vectors of the default user, and the error says how to reframe such a one
            tags.check(kind, message("", digest, body), tag, keys)
        except (ChecksumError, SignatureError):
            raise error from None
        raise type(error)(
            f"the frame is of another user than {user!r}: of the default one; make it for {user!r} "
            f"(tinylora-edge pack --user {user!r})"
        ) from None


def encode(
    values: NDArray[np.float32],
    dtype: str,
    sequence: int,
    digest: str,
    signer: tags.Signer,
    *,
    user: str = "",
    until: int | None = None,
) -> bytes:
    """Return the frame of values [n] that `dtype` can carry, with a sequence from 0 to 65535.

    `until` numbers its last day (`expiry`). FrameError: the user's name is none that a policy keeps.
    """
    basis = bytes.fromhex(digest)
    version, day = (BOUND, b"") if until is None else (DATED, until.to_bytes(2, "little"))
    first = version << 4 | DTYPES.index(dtype) | signer.kind << 2
    body = struct.pack("<B4sH", first, basis[:4], sequence) + day + encode_values(values, dtype)
    return body + signer.sign(message(user, basis, body))


def decode(data: bytes, size: int, digest: str) -> Frame:
    """Take apart a frame of `size` values for the basis with that digest.

    Raises:
        FrameError: empty, of a wrong length, or of an unknown version, dtype or tag kind.
        BasisMismatchError: the frame names another basis.
    """
    length, own = len(data), bytes.fromhex(digest[:8])
    if length % 2 == 0 or not HEADER_BYTES[BOUND] <= length <= longest(size):
        what = f"{length} bytes are no frame of this basis" if length else "the vector is empty"
        raise FrameError(f"{what}: expected {_lengths(size)}")
    version, dtype, kind = form(data)
    if data[1:5] != own:
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
    end = length - tags.SIZES[kind]
    body = bytes(data[:end])
    if is_padded(size, dtype) and body[-1]:
        raise FrameError(f"the byte that fills the frame up is {body[-1]:#04x}, not 0: it was damaged")
    return Frame(
        decode_values(body[HEADER_BYTES[version] :], dtype, size),
        dtype,
        body,
        bytes(data[end:]),
        sequence_of(data),
        kind,
        int.from_bytes(data[7:9], "little") if version == DATED else None,
    )


def form(data: bytes) -> tuple[int, str, int]:
    """Return the version, dtype and tag kind that a frame's first byte names; FrameError where unknown."""
    version, dtype, kind = data[0] >> 4, DTYPES[data[0] & 3], data[0] >> 2 & 3
    if version not in HEADER_BYTES:
        raise FrameError(f"the frame has version {version}, but this release reads versions 2 and 3")
    if kind not in tags.SIZES:
        raise FrameError(f"the frame's first byte {data[0]:#04x} names an unknown tag {kind}")
    return version, dtype, kind


def sequence_of(data: bytes) -> int:
    """Return the sequence that a header says."""
    return int.from_bytes(data[5:7], "little")


def frame_bytes(size: int, dtype: str, kind: int, version: int = BOUND) -> int:
    """Length of a frame of `size` values."""
    return HEADER_BYTES[version] + payload_bytes(size, dtype) + tags.SIZES[kind]


def longest(size: int) -> int:
    """Length of the longest frame of `size` values."""
    return max(frame_bytes(size, dtype, tags.ED25519, DATED) for dtype in DTYPES)


def _lengths(size: int) -> str:
    frames = sorted({frame_bytes(size, dtype, kind) for dtype in DTYPES for kind in tags.SIZES})
    return f"{', '.join(map(str, frames))} bytes (2 more with a last day) for {size} values"
