"""What a device demands of vector bytes before it applies them. Rules only: no I/O, no model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from .errors import ChecksumError, RollbackError, SignatureError, TinyLoraWarning, VectorError
from .vector import MicroVector
from .wire import frame as _frame
from .wire import marks, tags

if TYPE_CHECKING:
    from .basis import Basis

LEVELS: tuple[str, ...] = ("none", "checksum", "mac", "signature")
"""What `Policy(require=...)` may demand, weakest first."""

_OPTION_OF_KIND = {tags.HMAC: "--mac KEY", tags.ED25519: "--key FILE"}
_LEVEL_OF_KIND = {None: 0, tags.CRC32: 1, tags.HMAC: 2, tags.ED25519: 3}


class UnauthenticatedVectorWarning(TinyLoraWarning):
    """A raw payload was applied: it has no checksum, no sequence and no sender."""


class Policy:
    """Decides whether bytes may become the active micro-vector.

    The rules, in the order in which they are checked; the first that fails raises, and nothing changes:

    1. The bytes are a frame or a raw payload of the right length for the basis (FrameError).
    2. A frame names this basis (BasisMismatchError).
    3. The tag verifies: CRC-32 always (ChecksumError); a MAC or a signature under one of `keys`, even
       where none is required, since a tag that cannot be checked proves nothing (SignatureError).
    4. The tag is at least as strong as `require` (ChecksumError, SignatureError).
    5. Every value is finite (NonFiniteError).
    6. The norm of the values is at most `max_norm` (VectorError).
    7. The sequence is not lower than the highest accepted from the same stream under the same key
       (RollbackError). An equal one is accepted, so that a frame may be delivered twice. Raw payloads have
       no sequence.

    The highest accepted sequence of each (basis, key, stream) is remembered while the policy lives, and
    with `state` in a file that outlives it; share one policy between models to share that memory. Frames
    with a checksum alone have a mark of their own, so that nobody without a key can raise the mark of one.

    Keys are rotated by trusting both for a while: ship the new one, sign with it, then take the old one
    out of `keys`. As long as it is there, the last frames that it signed are accepted too.

    Args:
        require: `none` (the default: raw payloads too, with one warning), `checksum`, `mac` or `signature`.
        keys: verifiers of trusted senders (`Hmac`, `Ed25519Verifier`); any one of them may verify.
        max_norm: largest Euclidean norm of the values that is accepted.
        state: a file that keeps the sequences through restarts. Its directory must exist. Processes may
            share it. Whoever can write to it can undo rule 7.

    Raises:
        VectorError: an unknown `require`, one that no key in `keys` can satisfy, or a damaged state file.
        FileNotFoundError: the directory of `state` does not exist.
    """

    def __init__(
        self,
        require: str = "none",
        *,
        keys: Sequence[tags.Verifier] = (),
        max_norm: float = math.inf,
        state: str | PathLike[str] | None = None,
    ) -> None:
        if require not in LEVELS:
            raise VectorError(f"unknown policy {require!r}: choose one of {', '.join(LEVELS)}")
        self._required = LEVELS.index(require)
        if self._required >= 2 and not any(_LEVEL_OF_KIND[key.kind] >= self._required for key in keys):
            raise VectorError(
                f"policy {require!r} needs a key that can verify a {require}: pass keys=[...], or --key "
                "or --mac on the command line"
            )
        self.require = require
        self.max_norm = max_norm
        self._keys = tuple(keys)
        self._marks = marks.Marks() if state is None else marks.StateFile(state)
        self._warned = False

    def check(self, data: bytes, basis: Basis, *, stream: str = "") -> MicroVector:
        """Return the micro-vector in `data` if every rule allows it; change nothing.

        Args:
            data: a frame or a raw payload.
            basis: the loaded basis.
            stream: which sequence of vectors the bytes belong to, where an app has several
                (one a user, say).

        Raises:
            VectorError: one of its subclasses for each rule, as listed above.
            OSError: the state file cannot be read.
        """
        frame = _frame.decode(data, basis.size, basis.digest)
        key = self._check_tag(frame, bytes.fromhex(basis.digest))
        values = basis.values(frame.values)
        norm = float(np.linalg.norm(values.astype(np.float64)))
        if norm > self.max_norm:
            raise VectorError(
                f"the vector's norm is {norm:.4g}, but the policy accepts at most {self.max_norm:.4g}"
            )
        if frame.sequence is None:
            self._warn_once()
        else:
            highest = self._marks.highest(_mark(basis, key, stream))
            if frame.sequence < highest:
                raise RollbackError(
                    f"the frame has sequence {frame.sequence}, but {highest} was already accepted"
                    f"{f' from stream {stream!r}' if stream else ''}{f' under key {key}' if key else ''}: "
                    "an older vector is not applied again"
                )
        vector = MicroVector(values, frame.dtype, frame.sequence or 0)
        vars(vector)["_verified_by"] = key  # `record` has to know; the class is frozen for everybody else
        return vector

    def record(self, vector: MicroVector, basis: Basis, *, stream: str = "") -> None:
        """Remember that a vector which `check` returned was applied; with a state file, durably.

        Raises:
            VectorError: the state file is damaged, or the stream's name is too long.
            OSError: the state file cannot be written; it stays as it was.
        """
        self._marks.record(_mark(basis, vector.verified_by, stream), vector.sequence)

    def _check_tag(self, frame: _frame.Frame, digest: bytes) -> str:
        """Return the id of the key under which the tag verifies; empty for a checksum or none."""
        verified_by = ""
        if frame.kind == tags.CRC32 and not tags.Crc32().verify(digest + frame.body, frame.tag):
            expected = tags.Crc32().sign(digest + frame.body)
            raise ChecksumError(
                f"the frame's checksum is {frame.tag.hex()}, but its bytes give {expected.hex()}: "
                "it was damaged on its way; fetch it again"
            )
        if frame.kind in (tags.HMAC, tags.ED25519):
            name = tags.NAMES[frame.kind]
            keys = [key for key in self._keys if key.kind == frame.kind]
            if not keys:
                raise SignatureError(
                    f"the frame carries an {name} tag, but the policy has no {name} key to check it: pass "
                    f"Policy(keys=[...]), or {_OPTION_OF_KIND[frame.kind]} on the command line"
                )
            message = digest + frame.body
            found = next((key for key in keys if key.verify(message, frame.tag)), None)
            if found is None:
                raise SignatureError(
                    f"the frame's {name} tag {frame.tag[:8].hex()} does not verify under any of the "
                    f"{len(keys)} trusted keys ({', '.join(map(tags.key_id, keys))}): it was altered, or "
                    "comes from someone else"
                )
            verified_by = tags.key_id(found)
        if _LEVEL_OF_KIND[frame.kind] < self._required:
            error = ChecksumError if self.require == "checksum" else SignatureError
            got = "a raw payload" if frame.kind is None else f"a {tags.NAMES[frame.kind]} frame"
            raise error(f"the policy requires a {self.require}, but this is {got}")
        return verified_by

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "a raw payload has no checksum, sequence or sender: ship frames "
                "(MicroVector.to_bytes), or demand them with Policy(require='checksum')",
                UnauthenticatedVectorWarning,
                stacklevel=4,
            )


def _mark(basis: Basis, key: str, stream: str) -> marks.Mark:
    if len(stream) > marks.MAX_STREAM_CHARACTERS:
        raise VectorError(
            f"the stream's name has {len(stream)} characters, and at most {marks.MAX_STREAM_CHARACTERS} are "
            f"kept: {stream[:20]!r}..."
        )
    return basis.digest, key, stream
