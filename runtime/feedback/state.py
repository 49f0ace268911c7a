"""The state of a `FeedbackLearner` in a file: numbers in a fixed layout, so that no text can be in it.

Little-endian, format 1:

| bytes | field |
| --- | --- |
| 8 | `TLFEED1\\n` |
| 32 | digest of the basis |
| 4 | n, the number of values, u32 |
| 8 | seed, u64 |
| 8 | questions asked, u64 |
| 8 | clicks told, u64 |
| 8 | answers scored, u64 |
| 8 | step of the finite differences, f64 |
| 8 (n+1)^2 | precision, f64 |
| 8 (n+1) | shift, f64 |
| 8 n^2 | Fisher information, summed, f64 |
| 32 | SHA-256 of all before |

Its length depends on n alone: 3,148 bytes with 13 values.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from ...errors import BasisMismatchError, TrainError
from ...prior import Prior
from ...system import atomic_write
from .posterior import Posterior

_MAGIC = b"TLFEED1\n"
_HEAD = struct.Struct("<8s32sIQQQQd")
_HASH = 32


@dataclass
class FeedbackState:
    """Everything that a `FeedbackLearner` knows.

    Attributes:
        seed: of every random number.
        posterior: of the vector.
        asked: questions so far; each has random numbers of its own.
        clicks: told so far.
        step: of the finite differences, in units of v.
    """

    seed: int
    posterior: Posterior
    asked: int = 0
    clicks: int = 0
    step: float = 0.05


def read(
    path: str | PathLike[str], digest: str, size: int, prior: Prior | None = None
) -> FeedbackState | None:
    """Return the state in a file; None where there is no file.

    Args:
        path: of the file.
        digest: of the basis.
        size: n, the number of values.
        prior: of the basis. It is not in the file, which holds what clicks say and no more: where the basis
            has another one by now, or its first, the clicks are kept and count beside that.

    Raises:
        TrainError: the file is no state, or is damaged.
        BasisMismatchError: it is the state of another basis.
        FileNotFoundError: its directory does not exist.
        OSError: it cannot be read.
    """
    if not (folder := Path(path).resolve().parent).is_dir():
        raise FileNotFoundError(f"{folder} does not exist: make it, and the state is kept there")
    try:
        with open(path, "rb") as file:
            data = file.read(_length(size) + 1)
    except FileNotFoundError:
        return None
    name = Path(path).name
    if not data.startswith(_MAGIC):
        raise TrainError(f"{name} is no state of a tuner: name another file, or delete it to begin anew")
    digest_here = data[8:40].hex()
    if len(data) >= _HEAD.size and digest_here != digest:
        raise BasisMismatchError(
            f"{name} is the state of basis {digest_here[:8]}, but the loaded basis is {digest[:8]}: name "
            "another file, or delete it to begin anew"
        )
    whole = len(data) == _length(size) and int.from_bytes(data[40:44], "little") == size
    if not whole or hashlib.sha256(data[:-_HASH]).digest() != data[-_HASH:]:
        raise TrainError(
            f"{name} is damaged ({len(data)} bytes; a whole state has {_length(size)} and a matching hash): "
            "restore it, or delete it to begin anew"
        )
    _, _, n, seed, asked, clicks, answers, step = _HEAD.unpack_from(data)
    values = np.frombuffer(data[_HEAD.size : -_HASH], "<f8").astype(np.float64)
    square = (n + 1) ** 2
    posterior = Posterior(
        n,
        values[:square].reshape(n + 1, n + 1),
        values[square : square + n + 1],
        values[square + n + 1 :].reshape(n, n),
        answers,
        prior,
    )
    if not _usable(posterior) or not 0 < step < math.inf:
        raise TrainError(f"{name} has numbers that no clicks give: restore it, or delete it to begin anew")
    return FeedbackState(seed, posterior, asked, clicks, step)


def _usable(posterior: Posterior) -> bool:
    """Whether the sums are finite and those of squares, and a vector follows from them."""
    squares = (posterior.precision, posterior.fisher)
    if not all(np.isfinite(array).all() for array in (*squares, posterior.shift)):
        return False
    with np.errstate(all="ignore"):
        try:
            for square in squares:
                if np.linalg.eigvalsh(square)[0] < -1e-6 * np.abs(square).max():
                    return False
            return bool(np.isfinite(posterior.vector()).all())
        except np.linalg.LinAlgError:
            return False


def write(path: str | PathLike[str], state: FeedbackState, digest: str) -> None:
    """Replace the file, whole or not at all; for its owner alone.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    p = state.posterior
    head = _HEAD.pack(
        _MAGIC, bytes.fromhex(digest), p.n, state.seed, state.asked, state.clicks, p.answers, state.step
    )
    data = head + b"".join(a.astype("<f8").tobytes() for a in (p.precision, p.shift, p.fisher))
    with atomic_write(Path(path).resolve(), mode=0o600) as file:
        file.write(data + hashlib.sha256(data).digest())


def _length(n: int) -> int:
    return _HEAD.size + 8 * ((n + 1) ** 2 + (n + 1) + n * n) + _HASH
