"""The journal: finished modules of an export in a file, of a run that was killed or of one part.

    tinylora factors 1 <newline>
    record ...     u32 length of the header | header, JSON | A | B | u32 CRC-32 of the record so far

All numbers are little-endian. A record is there when its checksum is; a process that dies while it writes one
leaves a torn end, which the next cuts off. Records are only ever added, and a module's last one counts. A
part of an export has one more kind of record, without arrays: its plan.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...documents import parse_json
from ...errors import ExportError
from ...system import check_path

MAGIC = b"tinylora factors 1\n"
PLAN = "plan"

_MAX_HEADER_BYTES = 1 << 26  # a plan names every module of a model
_DTYPES = {"<f4", "<f2"}
_FIGURES = ("residual", "passes", "converged", "agreement")
_SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class Factors:
    """The factors of a finished module.

    Attributes:
        a, b: its factors as they are stored in a basis, rows in GGUF order.
        residual: worst two-sided residual of its matrices.
        passes: over its matrices, summed.
        converged: whether every matrix met the tolerance.
        agreement: distance between the factors and the deployed weight, if that is another one.
    """

    a: NDArray[Any] = field(repr=False)
    b: NDArray[Any] = field(repr=False)
    residual: float
    passes: int
    converged: bool
    agreement: float | None


@dataclass(frozen=True)
class _Record:
    """The header of a module, and where its arrays lie."""

    header: dict[str, Any]
    offset: int  # of A


@dataclass
class _Content:
    """The part of a file that is whole: up to byte `end`, 0 where even the first line is torn."""

    end: int
    plan: dict[str, Any] | None
    records: dict[str, _Record]


class Journal:
    """A file of finished modules, open for adding. Safe to use from several threads.

    Args:
        path: made where it does not exist; a torn end is cut off.
        plan: of the part that this becomes; the last one in the file counts.

    Raises:
        ExportError: it cannot be opened, or it is no such file.
        BlockingIOError: another process has it open.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, plan: dict[str, Any] | None = None) -> None:
        check_path(path, ExportError)
        self.path = path
        self._lock = Lock()
        self._synced = time.monotonic()
        try:
            # Not buffered: what a full disk has not taken must not be written once more when it is closed.
            self._file = open(path, "ab", buffering=0, opener=_open_no_link)  # noqa: SIM115 - see `close`
        except OSError as error:
            if path.is_symlink():
                raise ExportError(
                    f"{path} is a link, and what it leads to would be filled: remove it, or choose another "
                    "output"
                ) from None
            raise ExportError(f"cannot write to {path.parent}: {error.strerror or error}") from None
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.close()
            raise ExportError(f"{path} is not a regular file: remove it, or choose another output")
        self._records: dict[str, _Record] = {}
        try:
            _lock_file(self._file, path)
            self._open(plan)
        except BlockingIOError:
            self.close()
            raise
        except BaseException:
            self.close() if os.fstat(self._file.fileno()).st_size else self.remove()
            raise

    def __len__(self) -> int:
        return len(self._records)

    def has(self, module: str, key: str) -> bool:
        """Whether a module is there, made from what `key` stands for."""
        record = self._records.get(module)
        return record is not None and record.header["key"] == key

    def add(self, module: str, key: str, factors: Factors) -> None:
        """Add a finished module. It survives the end of the process at once, that of the machine soon.

        Raises:
            OSError: the disk is full, say; what was there before stays readable.
        """
        header = {
            "module": module,
            "key": key,
            "dtype": factors.a.dtype.newbyteorder("<").str,
            "a": factors.a.shape,
            "b": factors.b.shape,
            "residual": factors.residual,
            "passes": factors.passes,
            "converged": factors.converged,
            "agreement": factors.agreement,
        }
        with self._lock:
            self._append(header, (factors.a, factors.b))
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def read(self) -> dict[str, Factors]:
        """Return every module; the arrays stay in the file, memory-mapped."""
        with self._lock:
            return _map(self.path, self._records)

    def sync(self) -> None:
        """Make all of it durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and let go of it; it stays."""
        self._file.close()

    def remove(self) -> None:
        """Remove the file: what is in it is kept elsewhere now."""
        with suppress(OSError):  # Windows refuses while the arrays are mapped
            self.path.unlink(missing_ok=True)
        self.close()

    def _open(self, plan: dict[str, Any] | None) -> None:
        with open(self.path, "rb") as file:
            content = _read(file, self.path)
        self._records = content.records
        self._file.truncate(content.end)
        if content.end == 0:
            _write(self._file, MAGIC)
        if plan is not None and plan != content.plan:
            self._append({PLAN: plan}, ())

    def _append(self, header: dict[str, Any], arrays: tuple[NDArray[Any], ...]) -> None:
        packed = json.dumps(header, separators=(",", ":")).encode()
        start = self._file.seek(0, os.SEEK_END)
        checksum = 0
        try:
            parts = [struct.pack("<I", len(packed)), packed]
            parts += [_little_endian(array).tobytes() for array in arrays]
            for part in parts:
                checksum = zlib.crc32(part, checksum)
                _write(self._file, part)
            _write(self._file, struct.pack("<I", checksum))
        except BaseException:
            with suppress(OSError):  # a torn end is cut off by the next who opens it
                self._file.truncate(start)
            raise
        if arrays:
            self._records[header["module"]] = _Record(header, start + 4 + len(packed))


def journal_path(output: Path) -> Path:
    """Return where the journal of an export lies until it is finished: hidden, beside the output."""
    return output.parent / f".{output.name}.factors"


def read_part(path: Path) -> tuple[dict[str, Any], dict[str, Factors]]:
    """Return the plan and the modules of a file that is whole; the arrays stay in it, memory-mapped.

    Raises:
        ExportError: it cannot be read, is no such file, is damaged, or has no plan.
    """
    try:
        with open(path, "rb") as file:
            content = _read(file, path)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}") from None
    if content.end != size or size == 0:
        raise ExportError(
            f"{path} is damaged: it is whole up to byte {content.end} of {size}. Make this part again"
        )
    if content.plan is None:
        raise ExportError(f"{path} is no part of an export: it has no plan. Make parts with --part I/N")
    return content.plan, _map(path, content.records)


def _read(file: BinaryIO, path: Path) -> _Content:
    """Return what is whole in a file."""
    file.seek(0)
    magic = file.read(len(MAGIC))
    if not MAGIC.startswith(magic):
        raise ExportError(f"{path} is not a file of factors: it starts with {magic!r}. Move it away")
    if magic != MAGIC:
        return _Content(0, None, {})
    content = _Content(len(MAGIC), None, {})
    for header, start, end in _records(file):
        if PLAN in header:
            content.plan = header[PLAN]
        else:
            content.records[str(header["module"])] = _Record(header, start)
        content.end = end
    return content


def _records(file: BinaryIO) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Yield header, offset of the arrays and end of every whole record from the file's position on."""
    while True:
        start = file.tell()
        prefix = file.read(4)
        length = struct.unpack("<I", prefix)[0] if len(prefix) == 4 else _MAX_HEADER_BYTES + 1
        if length > _MAX_HEADER_BYTES:
            return
        packed = file.read(length)
        try:
            header = parse_json(packed, limit=_MAX_HEADER_BYTES)
            size = _nbytes(header)
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        checksum, left = zlib.crc32(packed, zlib.crc32(prefix)), size
        while left and (part := file.read(min(left, 1 << 20))):
            checksum, left = zlib.crc32(part, checksum), left - len(part)
        if left or file.read(4) != struct.pack("<I", checksum):
            return
        offset = start + 4 + length
        yield header, offset, offset + size + 4


def _nbytes(header: dict[str, Any]) -> int:
    if isinstance(header.get(PLAN), dict):
        return 0
    if header["dtype"] not in _DTYPES or not all(isinstance(header[name], str) for name in ("module", "key")):
        raise ValueError("no dtype of factors, or no names")
    shapes, figures = (header["a"], header["b"]), [header[name] for name in _FIGURES]
    if not all(isinstance(shape, list) and len(shape) in (2, 3) for shape in shapes):
        raise ValueError("no matrices")
    if not all(type(number) is int and 0 < number < 1 << 40 for shape in shapes for number in shape):
        raise ValueError("no sizes of matrices")
    if not all(isinstance(figure, int | float | None) for figure in figures):
        raise ValueError("no figures")
    return int(math.prod(header["a"]) + math.prod(header["b"])) * int(np.dtype(header["dtype"]).itemsize)


def _map(path: Path, records: dict[str, _Record]) -> dict[str, Factors]:
    with open(path, "rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    result = {}
    for module, record in records.items():
        header, dtype = record.header, np.dtype(record.header["dtype"])
        in_a, in_b = math.prod(header["a"]), math.prod(header["b"])
        values = np.frombuffer(buffer, dtype, in_a + in_b, record.offset)
        result[module] = Factors(
            values[:in_a].reshape(header["a"]),
            values[in_a:].reshape(header["b"]),
            **{name: header[name] for name in _FIGURES},
        )
    return result


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def _write(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _lock_file(file: FileIO, path: Path) -> None:
    """Take the file for this process; the system lets go of it when the process dies."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 40)  # a lock keeps others from reading, too: past the end there is nothing to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise BlockingIOError(f"{path} is in use") from None
