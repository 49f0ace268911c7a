"""Vectors that a model refuses, whatever its engine, each with its error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import support

from tinylora_edge import Basis, MicroVector, Projection
from tinylora_edge.errors import BasisMismatchError, ChecksumError, FrameError, NonFiniteError, VectorError


def bad_vectors(basis: Basis) -> list[tuple[type[VectorError], bytes | MicroVector]]:
    """Vectors that a model refuses under the default policy; the basis is one of its, of learned numbers."""
    factors, projection = basis.factors, basis.projection
    good = MicroVector.random(basis, 0.4, seed=9)
    frame, nan = good.to_bytes(basis), good.values.copy()
    nan[-1] = np.nan
    other = Basis(replace(factors, a=(-factors.a[0], *factors.a[1:])), projection)  # as many numbers
    unknown = Basis(factors, Projection.random(factors.modules, 2, rank=1))
    return [
        (FrameError, b""),
        (VectorError, frame[: len(frame) // 2]),
        (FrameError, frame + b"\0\0"),
        (FrameError, bytes(1_000_000)),
        (VectorError, frame[7:-4]),  # the values alone
        (ChecksumError, frame[:-1] + bytes([frame[-1] ^ 1])),
        (BasisMismatchError, frame[:1] + bytes([frame[1] ^ 1]) + frame[2:]),
        (BasisMismatchError, MicroVector.random(other, 0.4).to_bytes(other)),
        (BasisMismatchError, MicroVector.random(other, 0.4)),
        (BasisMismatchError, MicroVector.random(unknown, 0.4).to_bytes(unknown)),
        (NonFiniteError, support.frame(basis.digest, nan.astype("<f4").tobytes(), sequence=1)),
        (NonFiniteError, MicroVector(np.full(basis.size, 3e38, np.float32))),  # of R
        (VectorError, MicroVector.random(basis, 1e5).to_bytes(basis)),  # the norm of R
        (VectorError, MicroVector.random(basis, 1e5)),
        (VectorError, MicroVector(np.zeros(basis.size + 77_777, np.float32))),
    ]
