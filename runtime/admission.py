"""The admission of a vector: one way in for whatever an app passes, on every engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from ..basis import Bases
from ..errors import VectorError
from ..limits import VECTOR_FILE_BYTES
from ..vector import AdmittedVector, MicroVector, Policy

OneVector: TypeAlias = bytes | Path | MicroVector
"""The bytes of a frame, the `Path` of a file with them, or a vector of the app's own."""
VectorSource: TypeAlias = OneVector | Sequence[OneVector]
"""A vector, or a stack: several that act together, whose R add up. What is shared comes first, a user's own
last: the stack is that vector, with the others beneath it (`MicroVector.under`)."""


@contextmanager
def admitted(
    source: VectorSource, bases: Bases, policy: Policy, *, user: str = "", beneath: bool = False
) -> Iterator[AdmittedVector]:
    """Check a vector, or all of a stack, give it to a block that applies it, and record it once that is done.

    The policy is for bytes; a `MicroVector`, which the app made itself, has to be of one of the bases, and
    within the norm that the policy accepts. `user` is whose the last of a stack is; frames beneath it are
    everybody's, of the user without a name, and so are all where they are to lie `beneath` others.

    Raises:
        VectorError: a vector is refused, or is something else than a vector. The block does not run.
        OSError: the file cannot be read, or the policy's state cannot be written; the block has run then.
    """
    sources = list(source) if isinstance(source, list | tuple) else [source]
    if not sources:
        raise VectorError("a stack has at least one vector: for the base alone call clear()")
    with ExitStack() as admissions:
        found: AdmittedVector | None = None
        for place, each in enumerate(sources, 1):
            whose: Any = {"user": user} if place == len(sources) and not beneath else {"beneath": place}
            try:
                if isinstance(each, MicroVector):
                    vector = policy.own(each, bases)
                else:
                    vector = admissions.enter_context(policy.admit(vector_bytes(each), bases, **whose))
                found = vector if found is None else policy.stacked(found, vector)
            except VectorError as error:
                if len(sources) == 1 and not beneath:
                    raise
                raise type(error)(f"vector {place} of a stack: {error}") from None
        assert found is not None
        yield found


def admit(source: VectorSource, bases: Bases, policy: Policy, **whose: Any) -> AdmittedVector:
    """Check and record a vector, and return it; arguments and errors are those of `admitted`."""
    with admitted(source, bases, policy, **whose) as vector:
        return vector


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
        f"a vector is bytes, a pathlib.Path of a file with them, a MicroVector, or a list of these, not "
        f"{kind}: {advice}"
    )
