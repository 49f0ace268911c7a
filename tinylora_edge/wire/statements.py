"""Statements: short signed sentences about vectors, which are none (docs/FORMAT.md, "Statements").

* `Latest` goes down, beside published vectors: "until this day, this is the newest sequence of the stream".
* `Receipt` goes up, from a device: "this is the frame that I run".

Both have the layout of a frame, little-endian, with a high nibble that no version of frames has, and their
tags are over other words than those of frames. So neither is ever taken for the other, and none for a frame.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BasisMismatchError, FrameError
from ..limits import CHALLENGE_BYTES
from . import tags
from .frame import bound, sequence_of

RECEIPT, LATEST = 14, 15
"""High nibbles of the first byte."""

HASH_BYTES = 8
"""Bytes of a frame's SHA-256 that a receipt carries."""

_HEAD = struct.Struct("<B4sH")
_DAYS = struct.Struct("<HH")

LATEST_BYTES = _HEAD.size + _DAYS.size + tags.SIZES[tags.ED25519]
"""Length of the longest `Latest`."""


@dataclass(frozen=True)
class Latest:
    """The sentence that a sequence is the newest of its stream.

    Attributes:
        sequence: of the newest vector.
        issued: number of the day on which that was said; see `days`.
        until: number of the last day on which it may be believed.
    """

    sequence: int
    issued: int
    until: int


@dataclass(frozen=True)
class Receipt:
    """The sentence that a device runs a frame.

    Attributes:
        sequence: of the frame; 0 for a raw payload, and for the base alone.
        hash: the first 8 bytes of the SHA-256 of the frame's bytes; of no bytes for the base alone.
    """

    sequence: int
    hash: bytes

    def names(self, frame: bytes) -> bool:
        """Tell whether it names this frame; no bytes at all are the base alone."""
        return self.hash == hashlib.sha256(frame).digest()[:HASH_BYTES]


def encode_latest(latest: Latest, digest: str, stream: str, signer: tags.Signer) -> bytes:
    """Return the bytes of a `Latest`: 19 with a MAC, 75 with a signature.

    Args:
        latest: what is said.
        digest: of the basis, in hexadecimal.
        stream: name of the stream.
        signer: an `Hmac` or an `Ed25519Signer`.

    Raises:
        FrameError: a checksum, which says nothing; a number that does not fit, days in the wrong order, or a
            stream that is no text.
    """
    if not 0 <= latest.issued <= latest.until < 1 << 16:
        raise FrameError(f"days {latest.issued} to {latest.until} are none that a statement can be for")
    return _encode(
        LATEST, latest.sequence, _DAYS.pack(latest.issued, latest.until), digest, stream, b"", signer
    )


def decode_latest(data: bytes, digest: str, stream: str, keys: Sequence[tags.Verifier]) -> tuple[Latest, str]:
    """Return a `Latest`, and the id of the key under which it verifies.

    Raises:
        FrameError: the bytes are none.
        BasisMismatchError: it is about another basis.
        SignatureError: no key verifies it: it was altered, is of another stream, or comes from someone else.
    """
    sequence, rest, key = _decode(LATEST, data, _DAYS.size, digest, stream, b"", keys)
    issued, until = _DAYS.unpack(rest)
    if issued > until:
        raise FrameError(f"the statement was made on day {issued} and ended before, on day {until}")
    return Latest(sequence, issued, until), key


def encode_receipt(
    sequence: int, sha256: str, digest: str, stream: str, key: tags.Signer, challenge: bytes = b""
) -> bytes:
    """Return the 23 bytes of a `Receipt`.

    Args:
        sequence: of the frame.
        sha256: of its bytes, in hexadecimal.
        digest: of the basis, in hexadecimal.
        stream: name of the stream.
        key: of the device, an `Hmac`: a signature would take 56 bytes more.
        challenge: bytes that the host sent, up to 64. They are not sent back, but a receipt made for others
            does not verify: so it is a new one.

    Raises:
        FrameError: another key, a sequence that does not fit, too long a challenge, or a stream that
            is no text.
    """
    short = bytes.fromhex(sha256)[:HASH_BYTES]
    return _encode(RECEIPT, sequence, short, digest, stream, challenge, key)


def decode_receipt(
    data: bytes, digest: str, stream: str, keys: Sequence[tags.Verifier], challenge: bytes = b""
) -> Receipt:
    """Return a `Receipt` that a key of the device verifies.

    Raises:
        FrameError: the bytes are none.
        BasisMismatchError: the device runs another basis.
        SignatureError: no key verifies it: it was altered, is of another stream or an earlier challenge, or
            comes from another device.
    """
    sequence, short, _ = _decode(RECEIPT, data, HASH_BYTES, digest, stream, challenge, keys)
    return Receipt(sequence, short)


def _encode(
    what: int, sequence: int, rest: bytes, digest: str, stream: str, challenge: bytes, signer: tags.Signer
) -> bytes:
    if signer.kind not in _KINDS[what]:
        wanted = " or ".join(tags.NAMES[kind] for kind in _KINDS[what])
        raise FrameError(f"a {_NAMES[what]} has no {tags.NAMES[signer.kind]} tag: pass a key for {wanted}")
    if not 0 <= sequence < 1 << 16:
        raise FrameError(f"sequence {sequence} does not fit a {_NAMES[what]}: it must be from 0 to 65535")
    basis = bytes.fromhex(digest)
    body = _HEAD.pack(what << 4 | signer.kind << 2, basis[:4], sequence) + rest
    return body + signer.sign(_message(what, stream, challenge, basis, body))


def _decode(
    what: int,
    data: bytes,
    size: int,
    digest: str,
    stream: str,
    challenge: bytes,
    keys: Sequence[tags.Verifier],
) -> tuple[int, bytes, str]:
    name = _NAMES[what]
    kind = data[0] >> 2 & 3 if data else 0
    if not data or data[0] >> 4 != what or data[0] & 3 or kind not in _KINDS[what]:
        raise FrameError(f"the {len(data)} bytes {data[:8].hex()}... are no {name}")
    expected = _HEAD.size + size + tags.SIZES[kind]
    if len(data) != expected:
        raise FrameError(f"a {name} with {tags.NAMES[kind]} has {expected} bytes, and this has {len(data)}")
    basis = bytes.fromhex(digest)
    if data[1:5] != basis[:4]:
        raise BasisMismatchError(f"the {name} is about basis {data[1:5].hex()}, not {digest[:8]}")
    body, tag = bytes(data[: _HEAD.size + size]), bytes(data[_HEAD.size + size :])
    message = _message(what, stream, challenge, basis, body)
    other = f", or is of another stream than {stream!r}"
    key = tags.check(kind, message, tag, keys, what=name, other=other)
    return sequence_of(body), body[_HEAD.size :], key


def _message(what: int, stream: str, challenge: bytes, basis: bytes, body: bytes) -> bytes:
    if len(challenge) > CHALLENGE_BYTES:
        raise FrameError(f"a challenge has at most {CHALLENGE_BYTES} bytes, and this {len(challenge)}")
    return bound(_DOMAINS[what], stream) + basis + body + challenge


_NAMES = {RECEIPT: "receipt", LATEST: "statement of the newest vector"}
_KINDS = {RECEIPT: (tags.HMAC,), LATEST: (tags.HMAC, tags.ED25519)}
_DOMAINS = {RECEIPT: b"tinylora receipt 1\n", LATEST: b"tinylora latest 1\n"}
