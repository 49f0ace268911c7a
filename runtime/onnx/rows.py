"""Vectors as a baked graph takes them: float32 [rows, n], one row for all or one for each sequence."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import RollbackError, VectorError
from ...formats.onnx_adapter import basis_version, encode
from ...vector import CheckedVector, MicroVector, Policy
from ..admission import VectorSource, admitted


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Checked vectors. Make them with `rows`; the array is never changed.

    Attributes:
        values: float32 [rows, n], contiguous and read-only.
        vectors: what each row is; None for the base.
        digest: digest of the basis.
    """

    values: NDArray[np.float32]
    vectors: tuple[MicroVector | None, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        return f"Rows({len(self)} x {self.values.shape[1]} values, basis {self.digest[:8]})"

    def check_batch(self, batch: int) -> None:
        """Check that there is one row for all sequences, or one for each.

        Raises:
            VectorError: there is not; ONNX Runtime would broadcast, or fail somewhere in the graph.
        """
        if len(self) not in (1, batch):
            raise VectorError(
                f"there are {len(self)} rows of vectors, but the batch has {batch} sequences: pass one "
                f"vector for all, or {batch}, one for each"
            )

    def select(self, chosen: Sequence[int]) -> Rows:
        """Return some of the rows."""
        values = np.ascontiguousarray(self.values[list(chosen)])
        values.flags.writeable = False
        return Rows(values, tuple(self.vectors[i] for i in chosen), self.digest)

    def adapter(self, basis: Basis) -> bytes:
        """Return the bytes of an `.onnx_adapter` that feeds these rows."""
        sequence = self.vectors[0].sequence if len(self) == 1 and self.vectors[0] else 0
        return encode(self.values, sequence, basis_version(basis))


def rows(
    vectors: VectorSource | Sequence[VectorSource | None] | None,
    basis: Basis,
    policy: Policy,
    streams: str | Sequence[str] = "",
    batch: int | None = None,
) -> Rows:
    """Check vectors and stack them, all or nothing.

    Args:
        vectors: one for every sequence of a batch, or one for each.
        basis: the loaded basis.
        policy: what is demanded of bytes; what it accepted is recorded when all are accepted.
        streams: which sequence of vectors the bytes belong to (see `Policy`): one, or one a row.
        batch: sequences of the batch, where that is known.

    Raises:
        VectorError: a vector is refused (the message says which row), there is none, there are not as
            many as sequences, or the streams are not as many as the vectors. Nothing is recorded then.
    """
    one = vectors is None or isinstance(vectors, bytes | bytearray | memoryview | Path | MicroVector | str)
    given: list[VectorSource | None] = [vectors] if one else list(vectors)  # type: ignore[arg-type, list-item]
    if not given:
        raise VectorError("there are no vectors: pass one for all sequences, or one for each")
    names = [streams] * len(given) if isinstance(streams, str) else list(streams)
    if len(names) != len(given):
        raise VectorError(
            f"there are {len(given)} vectors, but {len(names)} streams: pass one stream for each"
        )
    stacked = np.zeros((len(given), basis.size), np.float32)
    checked: list[MicroVector | None] = []
    with ExitStack() as admissions:  # which records what was accepted, once all are
        for row, (source, stream) in enumerate(zip(given, names, strict=True)):
            found = None
            if source is not None:
                try:
                    found = admissions.enter_context(admitted(source, basis, policy, stream=stream))
                except VectorError as error:
                    if one:
                        raise
                    raise type(error)(f"row {row}: {error}") from None
                stacked[row] = found.values.reshape(-1)
            checked.append(found)
        stacked.flags.writeable = False
        made = Rows(stacked, tuple(checked), basis.digest)
        if batch is not None:
            made.check_batch(batch)
        _check_order(checked, names)
    return made


def _check_order(checked: Sequence[MicroVector | None], streams: Sequence[str]) -> None:
    """Refuse two sequences of one stream beside each other: the lower one is older than the other."""
    newest: dict[tuple[str, str], tuple[int, int]] = {}
    for row, (vector, stream) in enumerate(zip(checked, streams, strict=True)):
        if not isinstance(vector, CheckedVector) or vector.raw:
            continue
        other, sequence = newest.setdefault((stream, vector.verified_by), (row, vector.sequence))
        if sequence != vector.sequence:
            raise RollbackError(
                f"row {row} has sequence {vector.sequence} of the stream {stream!r}, and row {other} has "
                f"{sequence}, so one of them is an older vector of the same user: pass each user's stream"
            )


@contextmanager
def as_file(data: bytes) -> Iterator[str]:
    """Give the path of a private file with these bytes: ONNX Runtime loads adapters from files alone.

    It maps the file into memory. The name goes at once; Windows removes it when the process ends.
    """
    handle, name = tempfile.mkstemp(suffix=".onnx_adapter")  # 0600: nobody else reads or changes it
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        yield name
    finally:
        try:
            os.unlink(name)
        except PermissionError:
            atexit.register(_remove, name)


def _remove(name: str) -> None:
    with suppress(OSError):
        Path(name).unlink()
