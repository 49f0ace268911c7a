"""The admission of a vector: one way in for whatever an app passes, on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from ..basis import Bases
from ..errors import VectorError
from ..limits import VECTOR_FILE_BYTES
from ..vector import AdmittedVector, MicroVector, Policy

VectorSource: TypeAlias = bytes | Path | MicroVector
"""The bytes of a frame, the `Path` of a file with them, or a vector of the app's own."""


@contextmanager
def admitted(
    source: VectorSource, bases: Bases, policy: Policy, *, user: str = ""
) -> Iterator[AdmittedVector]:
    """Check a vector, give it to a block that applies it, and record it once that is done.

    The policy is for bytes; a `MicroVector`, which the app made itself, has to be of one of the bases, and
    within the norm that the policy accepts.

    Raises:
        VectorError: the vector is refused, or is something else than a vector. The block does not run.
        OSError: the file cannot be read, or the policy's state cannot be written; the block has run then.
    """
    if isinstance(source, MicroVector):
        yield policy.own(source, bases)
    else:
        with policy.admit(vector_bytes(source), bases, user=user) as vector:
            yield vector


def vector_bytes(source: object) -> bytes:
    """Return the bytes of a vector that an app passed as bytes or as a path.

    Raises:
        VectorError: it is neither, or the file is too long to be a vector's.
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Path):
        with source.open("rb") as file:
            data = file.read(VECTOR_FILE_BYTES + 1)
        if len(data) > VECTOR_FILE_BYTES:
            raise VectorError(f"{source} has more than {VECTOR_FILE_BYTES:,} bytes: it is no vector's file")
        return data
    kind = type(source).__name__
    if isinstance(source, str):
        advice = f"for a file pass pathlib.Path({source[:60]!r})"
    elif source is None:
        advice = "for the base alone call clear()"
    else:
        advice = "for values of your own pass MicroVector(values), float32 [n]"
    raise VectorError(
        f"a vector is bytes, a pathlib.Path of a file with them, or a MicroVector, not {kind}: {advice}"
    )
