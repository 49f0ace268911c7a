"""The micro-vector v, and the policy that decides which bytes may become one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .basis import MAX_NORM, Bases, Basis, frobenius
from .errors import SignatureError, VectorError
from .factors import Factors, is_whole
from .wire import frame, tags
from .wire.frame import Clock, check_day, day_date, day_number, utc_today
from .wire.sequences import Accepted, SequenceFile, SequenceLog, Source
from .wire.values import BITS, SCALED, encode_values, rounded

FIRST_SEQUENCE = 1  # the sequence of a vector that was given none
LAST_SEQUENCE = 0xFFFF  # the highest that a frame can carry


@dataclass(frozen=True, eq=False, repr=False)
class MicroVector:
    """The handful of numbers that personalizes a model: v of TinyLoRA (arXiv 2602.04118), and its dtype.

    Immutable; two are equal when dtype, sequence, basis, every value, and what lies beneath are.

    Attributes:
        values: float32 [n]. Rounded to `dtype` when the vector is made, so that what a host holds
            is what a device will hold.
        dtype: `fp32`, `bf16`, `fp16`, `int8`; of entries of R also `q2` and `q4`, with a scale a column.
        sequence: 0 to 65535; rises with every vector of the same user.
        basis: digest of the basis that it is a point of, in hexadecimal. Where it is empty, a model takes it
            for one of the basis with so many numbers (`Bases.of`).
        under: the vector beneath this one in a stack, where the R of both add up; None: it stands on the
            base. The frame does not hold it.
        entries: (M, p, q) of R, whose entries v is, where the dtype has a scale a column.

    VectorError: an unknown dtype, values that are not [n] or no such entries, a sequence out of range, or
    (NonFiniteError) a value that is NaN or infinite, or too large for the dtype.
    """

    values: NDArray[np.float32]
    dtype: str = "fp32"
    sequence: int = FIRST_SEQUENCE
    basis: str = ""
    under: MicroVector | None = None
    entries: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):  # infinity is refused below
            exact = np.asarray(self.values, dtype=np.float32)
        if exact.ndim != 1:
            raise VectorError(f"values of a micro-vector are n numbers, not of shape {exact.shape}")
        check_sequence(self.sequence)
        values, payload = rounded(exact, self.dtype, self.entries)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "_payload", payload)  # kept, as it takes long to find scales

    @classmethod
    def zeros(cls, basis: Basis) -> MicroVector:
        """Return the vector that changes nothing."""
        return cls(np.zeros(basis.size, np.float32), basis=basis.digest, entries=basis.entries)

    @classmethod
    def random(cls, basis: Basis, norm: float, *, seed: int = 0, dtype: str = "fp32") -> MicroVector:
        """Return a vector of a random direction and a given Euclidean norm."""
        direction = np.random.default_rng(seed).standard_normal(basis.size)
        values = (direction * (norm / np.linalg.norm(direction))).astype(np.float32)
        return cls(values, dtype, basis=basis.digest, entries=basis.entries)

    @classmethod
    def from_bytes(cls, data: bytes, basis: Basis | Bases, policy: Policy | None = None) -> AdmittedVector:
        """Read a frame as `policy.check` does, or `Policy().check`."""
        return (policy or Policy()).check(data, basis)

    def to_bytes(
        self,
        basis: Basis,
        tag: tags.Signer | str = "crc32",
        *,
        user: str = "",
        until: date | None = None,
        sequence: int | None = None,
    ) -> bytes:
        """Return the frame of this vector. Its values are encoded already; this adds header and tag.

        Args:
            basis: that of the vector.
            tag: "crc32", or a signer (`Hmac`, `Ed25519Signer`).
            user: as the device passes it to `swap`: for another one the frame does not verify.
            until: the last day on which the frame may be accepted, in UTC; None for ever.
            sequence: of the frame; None for the vector's own.

        VectorError: the vector is not of the basis, or in a dtype that it does not take; an unknown tag, or a
        sequence or a day that no frame can name.
        """
        basis.values(self)
        number = self.sequence if sequence is None else check_sequence(sequence)
        if self.dtype in BITS and self.entries != basis.entries:
            raise VectorError(
                f"the vector in {self.dtype} is entries of the shape {self.entries}, but those of basis "
                f"{basis.id} are {basis.entries}"
            )
        signer = tags.Crc32() if tag == "crc32" else tag
        if isinstance(signer, str) or signer is None:
            raise VectorError(f"unknown tag {tag!r}: use 'crc32' or a signer")
        last = None if until is None else day_number(until)
        payload: bytes = vars(self)["_payload"]
        return frame.encode(payload, self.dtype, number, basis.digest, signer, user=user, until=last)

    def __repr__(self) -> str:
        values = np.array2string(self.values, precision=4, threshold=6, edgeitems=2, separator=", ")
        of = f", basis {self.basis[:8]}" if self.basis else ""
        on = "" if self.under is None else f" on {self.under!r}"
        return f"{type(self).__name__}({values} [{len(self.values)}], {self.dtype}, {self.sequence}{of}){on}"

    @property
    def norm(self) -> float:
        """The Euclidean norm of the values."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def _key(self) -> tuple[Any, ...]:
        beneath = self.under and self.under._key()
        return self.dtype, self.sequence, self.basis, self.values.tobytes(), beneath

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, MicroVector) else NotImplemented

    def __reduce__(self) -> tuple[Any, ...]:
        whole = self.values, self.dtype, self.sequence, self.basis, self.under, self.entries
        return type(self), whole  # through the constructor, so that values of a copy are read-only too

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True, eq=False, repr=False)
class AdmittedVector(MicroVector):
    """A checked micro-vector, as engines take it: with its R, and the key that verified it.

    `Policy.check` makes it of bytes, `Policy.own` of a vector of the app's; every later layer carries it.
    It equals a vector that names its basis. What `dataclasses.replace` makes of it is admitted no longer.

    Attributes:
        r: float32 [M, p, q], read-only; of a stack the sum, in the larger shape.
        under: the vector beneath it, admitted too.
        verified_by: id of the trusted key under which its tag verified; empty for a checksum.
        user: name of the user that it was checked for.
        until: the last day on which it may be used; None for ever.
        mark: what a policy records of it: whose sequence, and which.
    """

    under: AdmittedVector | None = None
    r: NDArray[np.float32] = field(init=False)
    verified_by: str = field(default="", init=False)
    user: str = field(default="", init=False)
    until: date | None = field(default=None, init=False)
    mark: tuple[Source, Accepted] = field(default=(("", "", ""), Accepted()), init=False)  # nothing

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of R: equal for vectors that change the model equally."""
        return hashlib.sha256(repr(self.r.shape).encode() + self.r.tobytes()).digest()

    @classmethod
    def _with(cls, attributes: dict[str, Any]) -> AdmittedVector:
        vector = object.__new__(cls)  # past the constructor: the values are rounded to the dtype already
        vector.__dict__.update(attributes)
        vector.values.flags.writeable = vector.r.flags.writeable = False
        return vector

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._with, (dict(vars(self)),)


class Policy:
    """The rules by which a device decides whether bytes may become the active micro-vector.

    The rules, in the order in which they are checked; the first that fails raises, and nothing changes:

    1. The bytes are a frame (FrameError).
    2. The frame names a basis that is known (BasisMismatchError), and has its length (FrameError).
    3. The tag verifies for this user: a CRC-32 (ChecksumError), or a MAC or a signature under one of `keys`;
       one that cannot be checked proves nothing (SignatureError).
    4. Where there are keys, it is no CRC-32 (SignatureError). The last day of a frame that has one is not
       over by the device's clock (ExpiredError).
    5. Every value is finite (NonFiniteError).
    6. The Frobenius norm of R is at most `max_norm` (VectorError).
    7. The sequence is not lower than the highest accepted from the same user under the same key, or under
       no key (RollbackError). An equal one is accepted, so that a frame may be delivered twice; under a key
       it is refused with other values, since whoever carries frames could choose between the two.

    Vectors of a stack are checked each by itself, and the norm of the sum by rule 6.

    The policy remembers the highest accepted sequence of each (factors, key, user), whatever the projection,
    so that a user who grew from 13 numbers to 840 is not set back; each place beneath another vector counts
    by itself. With `state` the memory outlives the policy; models that share a policy share its memory.

    Args:
        keys: verifiers of trusted senders (`Hmac`, `Ed25519Verifier`), one of which has to verify; without
            any, a checksum is enough.
        max_norm: largest Frobenius norm of R that is accepted; infinite for any. It keeps nonsense out, and
            is no safety: which norm makes an engine's logits non-finite depends on the model and on where
            the norm is. A generation ends with an error where they are.
        state: a file that keeps the sequences through restarts, which processes may share; or the log of a
            store of many users' vectors.
        today: the day in UTC: a callable that returns it (by default the system's clock), or a date.

    VectorError: a key that is none, a `max_norm` that is no number from 0 on, or a damaged state file.
    FileNotFoundError: the directory of `state` does not exist.
    """

    def __init__(
        self,
        *,
        keys: Sequence[tags.Verifier] = (),
        max_norm: float = MAX_NORM,
        state: str | PathLike[str] | SequenceLog | None = None,
        today: Clock = utc_today,
    ) -> None:
        if state is None:
            state = SequenceLog()
        self._log = state if isinstance(state, SequenceLog) else SequenceFile(state)
        self._clock = today
        for key in keys:
            if not isinstance(key, tags.Verifier):
                raise VectorError(
                    f"keys=[...] takes verifiers, Hmac and Ed25519Verifier, not {type(key).__name__}"
                )
        self._keys = tuple(keys)
        if not isinstance(max_norm, int | float | np.floating | np.integer) or not max_norm >= 0:  # or is NaN
            raise VectorError(f"max_norm={max_norm!r} is not a bound: pass a number of at least 0")
        self.max_norm = max_norm

    def __repr__(self) -> str:
        keys = ", ".join(key.id for key in self._keys)
        return f"Policy(keys=[{keys}], max_norm={self.max_norm:g})"

    def check(self, data: bytes, known: Basis | Bases, *, user: str = "", beneath: int = 0) -> AdmittedVector:
        """Return the micro-vector in a frame if every rule allows it; change nothing.

        Args:
            known: the basis of the vector; or all that a model has, among which a frame names its own.
            user: whose vectors they are, where an app has several: one a user, say.
            beneath: its place, from 1, among those that lie beneath another one.

        VectorError: the bytes break a rule, as listed above. OSError: the state file cannot be read.
        """
        vector = self.verified(data, known, user=user, beneath=beneath)
        source, accepted = vector.mark
        self._log.find(source).check(accepted, source)
        return vector

    def verified(
        self, data: bytes, known: Basis | Bases, *, user: str = "", beneath: int = 0
    ) -> AdmittedVector:
        """Return what `check` returns, but leave the sequence unchecked: the caller compares its mark."""
        basis = known if isinstance(known, Basis) else known.of_frame(data)
        received = frame.decode(data, basis.size, basis.digest, basis.entries)
        key = frame.check_tag(received, user, basis.digest, self._keys)
        if self._keys and not key:
            raise SignatureError(
                f"the frame has a CRC-32 alone, and the policy requires a tag under one of {len(self._keys)} "
                "keys: sign it (pack --key)"
            )
        if (until := received.head.until) is not None:
            check_day(until, self._clock)
        values, dtype, sequence = basis.values(received.values), received.head.dtype, received.head.sequence
        r = self._bounded(basis.R(values), "the vector")
        # A sender without a key can choose any sequence, so other values under the same one prove nothing.
        accepted = Accepted(sequence, content(basis.digest, dtype, values) if key else "")
        source = basis.factors.digest, f"{key}(beneath {beneath})" if beneath else key, user
        return AdmittedVector._with(
            {
                "values": values,
                "_payload": received.payload,
                "dtype": dtype,
                "sequence": sequence,
                "basis": basis.digest,
                "entries": basis.entries,
                "r": r,
                "verified_by": key,
                "user": user,
                "until": None if until is None else day_date(until),
                "mark": (source, accepted),
            }
        )

    def own(self, vector: MicroVector, known: Bases) -> AdmittedVector:
        """Return a vector that the app made itself, with its R: only norms are checked, its own and a sum's,
        and of one that was admitted before its last day.

        VectorError: it is of no basis that the model knows, or R is larger than `max_norm`; its day is over
        (ExpiredError).
        """
        basis = known.of(vector)
        if isinstance(vector, AdmittedVector) and hasattr(vector, "r"):  # after `replace` it has no R
            self._bounded(vector.r, "the vector")  # another policy may have admitted it
            return self.in_force(vector)
        own = {key: getattr(vector, key) for key in ("values", "_payload", "dtype", "sequence", "entries")}
        r = self._bounded(basis.R(vector), "the vector")
        made = AdmittedVector._with({**own, "basis": basis.digest, "r": r})
        return made if vector.under is None else self.stacked(self.own(vector.under, known), made)

    def stacked(self, under: AdmittedVector, vector: AdmittedVector) -> AdmittedVector:
        """Return a vector with another one beneath it. Its R is the sum of both, in the larger shape.

        Leading directions nest: a smaller R is the corner of a larger one.

        VectorError: R of both together is larger than `max_norm`.
        """
        r = np.zeros(np.maximum(under.r.shape, vector.r.shape), np.float32)
        for each in (under.r, vector.r):
            r[:, : each.shape[1], : each.shape[2]] += each
        below = under if vector.under is None else self.stacked(under, vector.under)
        alone = {name: value for name, value in vars(vector).items() if name != "digest"}
        return AdmittedVector._with({**alone, "r": self._bounded(r, "the stack"), "under": below})

    def in_force(self, vector: AdmittedVector) -> AdmittedVector:
        """Return a vector that is to answer one more request. ExpiredError: its last day is over, or that of
        one beneath it. Whatever keeps an admitted vector asks this at each use."""
        if vector.until is not None:
            check_day(day_number(vector.until), self._clock)
        if vector.under is not None:
            self.in_force(vector.under)
        return vector

    def _bounded(self, r: NDArray[np.float32], of: str) -> NDArray[np.float32]:
        if (norm := frobenius(r)) > self.max_norm:
            raise VectorError(
                f"R of {of} has the norm {norm:.4g}, but the policy accepts at most {self.max_norm:.4g}"
            )
        return r

    @contextmanager
    def admit(
        self, data: bytes, known: Basis | Bases, *, user: str = "", beneath: int = 0
    ) -> Iterator[AdmittedVector]:
        """Check bytes, yield the vector to a block that applies it, and record it after the block.

            with policy.admit(data, known, user="alice") as vector:
                apply(vector)

        Where the block raises, nothing is recorded. Where recording raises, the block has run: it is the
        caller's to take back what it did. Errors are those of `check` and `record`.
        """
        vector = self.check(data, known, user=user, beneath=beneath)
        yield vector
        self.record(vector)

    def record(self, vector: AdmittedVector) -> None:
        """Record that a vector from `check` was applied; with a state file, durably.

        RollbackError: another thread or process recorded a later vector of the user meanwhile, or another one
        with this sequence: the caller takes back what it did. VectorError: the state file is damaged.
        OSError: it cannot be written, and stays as it was.
        """
        self._log.record(*vector.mark)

    def highest(self, factors: Factors, *, key: str = "", user: str = "") -> int:
        """Return the highest sequence accepted from a user under a key; 0 if there is none. Errors: see
        `record`."""
        return self._log.find((factors.digest, key, user)).sequence


def check_sequence(number: int) -> int:
    """Return a sequence that a frame can carry; VectorError where it is none."""
    if not is_whole(number) or not 0 <= number <= LAST_SEQUENCE:
        raise VectorError(f"sequence {number} is out of range: whole numbers from 0 to {LAST_SEQUENCE}")
    return number


def content(digest: str, dtype: str, values: NDArray[np.float32]) -> str:
    """Return the 32 hexadecimal digits by which a policy remembers the values of a vector.

    `digest` is the basis's.
    """
    found = hashlib.sha256(f"{digest}\n{dtype}\n".encode())
    whole = dtype in ("fp32", *SCALED)
    found.update(np.ascontiguousarray(values, "<f4").data if whole else encode_values(values, dtype))
    return found.hexdigest()[:32]
