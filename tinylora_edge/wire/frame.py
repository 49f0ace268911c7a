"""Frames: the wire form of a micro-vector (docs/FORMAT.md, "Frames").

The length of a frame follows from its first bytes and its basis.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import BasisMismatchError, ChecksumError, ExpiredError, FrameError, SignatureError, VectorError
from ..limits import USER_CHARACTERS
from . import tags
from .values import BITS, DTYPES, Entries, decode_values, payload_bytes

BOUND, LOW = 2, 4  # versions of frames without a last day; 4 is for q2 and q4
DATED = (BOUND + 1, LOW + 1)  # the versions of the same frames with a last day
HEADER_BYTES = {BOUND: 7, BOUND + 1: 9, LOW: 8, LOW + 1: 10}


class Head(NamedTuple):
    """What a frame's first bytes say, unverified."""

    version: int
    dtype: str
    kind: int  # of tag, as in `wire.tags`
    basis_id: str
    sequence: int
    until: int | None  # last day, as `day_number` counts it


@dataclass(frozen=True)
class Frame:
    """The parts of a frame, decoded but not yet trusted."""

    head: Head
    values: NDArray[np.float32]  # [n]
    payload: bytes  # the encoded values
    body: bytes  # all bytes before the tag
    tag: bytes


def message(user: str, digest: bytes, body: bytes) -> bytes:
    """Return what a tag is computed over, where `body` is all bytes before the tag. FrameError: the user's
    name is not valid."""
    with suppress(UnicodeEncodeError):
        if len(user) <= USER_CHARACTERS:
            return hashlib.sha256(b"tinylora stream 2\n" + user.encode()).digest() + digest + body
    raise FrameError(
        f"the user {user[:40]!r} is not valid: it has {len(user)} characters, where "
        f"at most {USER_CHARACTERS} of valid Unicode are allowed"
    )


def check_tag(received: Frame, user: str, digest: str, keys: Sequence[tags.Verifier]) -> str:
    """Return the id of the key under which a frame's tag verifies; empty for a checksum.

    ChecksumError: the bytes do not have this CRC-32. SignatureError: there is no key of the tag's kind, or
    none of them verifies it. FrameError: the user's name is not valid.
    """
    kind, tag = received.head.kind, received.tag
    signed, name = message(user, bytes.fromhex(digest), received.body), tags.NAMES[kind]
    # A vector that `train` wrote is bound to no name, hence the advice.
    other = f"another user than {user!r} (pack --user {user!r} makes it theirs)" if user else "a named user"
    if kind == tags.CRC32:
        if tag != (expected := tags.Crc32().sign(signed)):
            raise ChecksumError(
                f"the frame's checksum is {tag.hex()}, but its bytes give {expected.hex()}: it was damaged "
                f"on its way, or is of {other}; fetch it again"
            )
        return ""
    usable = [key for key in keys if key.kind == kind]
    if not usable:
        raise SignatureError(
            f"the frame has an {name} tag, but the policy has no {name} key to check it (keys=[...], "
            "--key FILE)"
        )
    for key in usable:
        if key.verify(signed, tag):
            return key.id
    raise SignatureError(
        f"the frame's {name} tag {tag[:8].hex()} does not verify under any of the {len(usable)} trusted "
        f"keys ({', '.join(key.id for key in usable)}): it was altered, or comes from someone else, or is of "
        f"{other}"
    )


def encode(
    payload: bytes,
    dtype: str,
    sequence: int,
    digest: str,
    signer: tags.Signer,
    *,
    user: str = "",
    until: int | None = None,
) -> bytes:
    """Return the frame of values that were encoded in `dtype`, with a sequence from 0 to 65535.

    `until` is the number of its last day. FrameError: the user's name is not valid.
    """
    basis, low = bytes.fromhex(digest), dtype in BITS
    day = b"" if until is None else until.to_bytes(2, "little")
    first = _version(dtype, bool(day)) << 4 | min(DTYPES.index(dtype), 3) | signer.kind << 2
    header = bytes([first, BITS[dtype]] if low else [first]) + basis[:4] + struct.pack("<H", sequence) + day
    body = header + payload
    return body + signer.sign(message(user, basis, body))


def decode(data: bytes, size: int, digest: str, entries: Entries = ()) -> Frame:
    """Take a frame apart, whose tag is not verified here.

    `size`, `digest` and `entries` are those of the basis: n, its digest, and the layout of R where its values
    are the entries of R.

    FrameError: it is no frame, has a wrong length or an unknown version, dtype or tag, or is damaged.
    BasisMismatchError: it names another basis.
    """
    length, found = len(data), head(data)
    version, dtype, kind = found[:3]
    if found.basis_id != digest[:8]:
        raise BasisMismatchError(
            f"the frame is for basis {found.basis_id}, but the loaded basis is {digest[:8]}: "
            "use the vector that was made for this one (or the frame was damaged on its way)"
        )
    if dtype in BITS and not entries:
        raise FrameError(f"the frame is in {dtype}, which only vectors of entries may be: it was damaged")
    expected = frame_bytes(size, dtype, kind, dated=version in DATED, entries=entries)
    if length != expected:
        raise FrameError(
            f"the frame has {length} bytes, but {size} values in {dtype} with {tags.NAMES[kind]} "
            f"take {expected}: it was cut or padded on its way"
        )
    end = length - tags.SIZES[kind]
    body = bytes(data[:end])
    payload = body[HEADER_BYTES[version] :]
    values = decode_values(payload, dtype, size, entries)
    return Frame(found, values, payload, body, bytes(data[end:]))


def head(data: bytes) -> Head:
    """Return what a frame's first bytes say. FrameError: no frame begins with them."""
    if len(data) <= HEADER_BYTES[BOUND]:
        raise FrameError(f"{len(data)} bytes are not a frame: it was cut on its way, or is something else")
    version, dtype, kind = data[0] >> 4, DTYPES[data[0] & 3], data[0] >> 2 & 3
    if version not in HEADER_BYTES:
        raise FrameError(f"{len(data)} bytes are not a frame that is read: version {version}, not 2 to 5")
    if kind not in tags.SIZES:
        raise FrameError(f"the frame's first byte {data[0]:#04x} names an unknown tag {kind}")
    if low := version >= LOW:
        named = [name for name, bits in BITS.items() if data[1] == bits]
        if not named or dtype != "int8":
            raise FrameError(f"the frame's first bytes {data[:2].hex()} name an unknown number of bits")
        dtype = named[0]
    basis, sequence = struct.unpack_from("<4sH", data, 1 + low)
    end = HEADER_BYTES[version]
    day = int.from_bytes(data[end - 2 : end], "little") if version in DATED else None
    return Head(version, dtype, kind, basis.hex(), sequence, day)


def _version(dtype: str, dated: bool) -> int:
    return (LOW if dtype in BITS else BOUND) + dated


def frame_bytes(size: int, dtype: str, kind: int, *, dated: bool = False, entries: Entries = ()) -> int:
    """Return how many bytes a frame of `size` values has."""
    around = HEADER_BYTES[_version(dtype, dated)] + tags.SIZES[kind]
    return around + payload_bytes(size, dtype, entries)


def longest(size: int) -> int:
    """Return how many bytes the longest frame of `size` values has.

    It is in fp32: q2 and q4 have a scale of a byte for each column, but each column has at least one value.
    """
    return frame_bytes(size, "fp32", tags.ED25519, dated=True)


# Users: a frame is bound to a user's name, and published under it

DEFAULT_USER = "default"  # stands for no name where one is needed: in a path, and on the command line
RULE = "use 1 to 64 of A-Z a-z 0-9 . _ and -, beginning with a letter or digit"  # that of `is_portable`
_PORTABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def is_portable(user: str) -> bool:
    """Tell whether a name is safe in a path and an address, as it must be to be published or served."""
    return _PORTABLE.match(user) is not None


def bound_name(user: str) -> str:
    """Return the name that a user's frames are bound to: none for the default user."""
    return "" if user == DEFAULT_USER else user


# Last days: a frame has the number, 0 to 65535, of days since 2026-01-01 in UTC

FIRST_DAY = date(2026, 1, 1)
LAST_DAY = FIRST_DAY + timedelta(days=0xFFFF)
Clock: TypeAlias = date | Callable[[], date]  # the day in UTC, or what returns it


def utc_today() -> date:
    """Return the present day by the system's clock."""
    return datetime.now(UTC).date()


def day_number(day: date) -> int:
    """Return the number of a day; VectorError where no frame can name it."""
    plain = day.date() if isinstance(day, datetime) else day
    if not isinstance(plain, date) or not FIRST_DAY <= plain <= LAST_DAY:
        raise VectorError(
            f"the day {plain!s:.40} cannot be written: it must be a date from {FIRST_DAY} to {LAST_DAY}"
        )
    return (plain - FIRST_DAY).days


def day_date(day: int) -> date:
    """Return the day of a number from 0 to 65535."""
    return FIRST_DAY + timedelta(days=day)


def check_day(until: int, clock: Clock) -> None:
    """Raise ExpiredError where a last day is over, VectorError where the clock's day is no possible one."""
    day = clock() if callable(clock) else clock
    try:
        today = day_number(day)
    except VectorError:
        raise VectorError(
            f"the device's clock says {day!s:.40}, which is impossible: set the clock"
        ) from None
    if today > until:
        raise ExpiredError(
            f"the vector's last day was {day_date(until)}, and today is {day_date(today)} (UTC): get a newer "
            "one"
        )
