"""The machine under this package, and the version that runs on it: whole writes, and cores."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO

__version__ = "0.1.0"
"""The version, in one place: pyproject.toml reads it from here."""


@contextmanager
def atomic_write(path: str | PathLike[str], *, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; on leaving, make it `path` durably.

    On an exception the temporary file is removed and `path` stays as it was. `mode` is subject to the
    umask, as with `open`.

    Raises:
        OSError: the directory is missing, not writable, or full.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode & ~_umask())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_directory(path.parent)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable; a no-op where directories cannot be opened (Windows)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    # mkstemp makes files 0600; the umask can only be read by setting it.
    current = os.umask(0o022)
    os.umask(current)
    return current
