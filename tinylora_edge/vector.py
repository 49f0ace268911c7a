"""The micro-vector: the handful of numbers that personalizes a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import NonFiniteError, VectorError
from .wire import frame, tags

if TYPE_CHECKING:
    from ._policy import Policy
    from .basis import Basis


@dataclass(frozen=True, eq=False)
class MicroVector:
    """v and its dtype. Immutable; two are equal when dtype, sequence and every value are.

    Attributes:
        values: float32 [G, u]. Rounded to `dtype` when the vector is made, so that what a host holds
            is what a device will hold.
        dtype: of the values on the wire: `fp32`, `bf16` or `fp16`.
        sequence: 0 .. 65535; rises with every vector of the same stream.

    Raises:
        VectorError: an unknown dtype, values that are not [G, u], or a sequence out of range.
        NonFiniteError: a value is NaN or infinite, or too large for the dtype.
    """

    values: NDArray[np.float32]
    dtype: str = "fp32"
    sequence: int = 0

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):  # infinity is refused below
            given = np.asarray(self.values, dtype=np.float32)
        if given.ndim != 2:
            raise VectorError(f"values of a micro-vector are [groups, u], not of shape {given.shape}")
        if not 0 <= self.sequence < 1 << 16:
            raise VectorError(f"sequence {self.sequence} is out of range: it must be from 0 to 65535")
        rounded = frame.round_to(given.reshape(-1), self.dtype)
        if not np.isfinite(rounded).all():
            index = int(np.flatnonzero(~np.isfinite(rounded))[0])
            raise NonFiniteError(
                f"value {index} is {given.reshape(-1)[index]}, which is not finite in {self.dtype}: "
                "every value must be"
            )
        values = rounded.reshape(given.shape)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    @classmethod
    def zeros(cls, basis: Basis, dtype: str = "fp32") -> MicroVector:
        """Return the vector that changes nothing."""
        return cls(np.zeros((basis.groups, basis.u), np.float32), dtype)

    @classmethod
    def random(cls, basis: Basis, norm: float, *, seed: int = 0, dtype: str = "fp32") -> MicroVector:
        """Return a vector of a random direction and a given Euclidean norm."""
        direction = np.random.default_rng(seed).standard_normal((basis.groups, basis.u))
        return cls((direction * (norm / np.linalg.norm(direction))).astype(np.float32), dtype)

    @classmethod
    def from_bytes(cls, data: bytes, basis: Basis, policy: Policy | None = None) -> MicroVector:
        """Read a frame or a raw payload, all or nothing.

        Args:
            data: the bytes.
            basis: the basis they are for.
            policy: what is demanded of them; by default a checksum frame or a raw payload.

        Raises:
            VectorError: one of its subclasses, as `Policy` lists them.
        """
        from ._policy import Policy

        return (policy or Policy()).check(data, basis)

    def to_bytes(self, basis: Basis, tag: tags.Signer | str | None = "crc32") -> bytes:
        """Return the frame of this vector, or its raw payload.

        Args:
            basis: the basis that the vector is for.
            tag: "crc32" (the default), a signer (`Hmac`, `Ed25519Signer`), or None for a raw payload:
                n*4 bytes in fp32, n*2 in bf16. (A raw fp16 payload could not be told from bf16.)

        Raises:
            VectorError: the vector does not fit the basis, an unknown tag, or a raw fp16 payload.
        """
        values = basis.values(self.values).reshape(-1)
        if tag is None:
            if self.dtype == "fp16":
                raise VectorError("a raw payload of 2-byte values is read as bf16: send fp16 in a frame")
            return frame.encode_values(values, self.dtype)
        signer = tags.Crc32() if tag == "crc32" else tag
        if isinstance(signer, str):
            raise VectorError(f"unknown tag {tag!r}: use 'crc32', a signer, or None for a raw payload")
        return frame.encode(values, self.dtype, self.sequence, basis.digest, signer)

    @property
    def verified_by(self) -> str:
        """Id of the trusted key under which a policy verified it; empty for a checksum, or none at all.

        It is no part of the value: two vectors are equal whoever sent them.
        """
        return str(vars(self).get("_verified_by", ""))

    @property
    def norm(self) -> float:
        """The Euclidean norm of the values."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def _key(self) -> tuple[str, int, tuple[int, ...], bytes]:
        return self.dtype, self.sequence, self.values.shape, self.values.tobytes()

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, MicroVector) else NotImplemented

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"_verified_by": self.verified_by} if self.verified_by else None
        return type(self), (self.values, self.dtype, self.sequence), state  # copies are read-only too

    def __hash__(self) -> int:
        return hash(self._key())
