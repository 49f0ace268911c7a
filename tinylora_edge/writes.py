"""Writes that are whole or nothing, and locks of files that several processes replace."""

from __future__ import annotations

import glob
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO

_ABANDONED_S = 3600.0


@contextmanager
def atomic_write(path: str | PathLike[str], *, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; on leaving, make it `path` durably.

    On an exception the temporary file is removed and `path` stays as it was. What a killed writer of the
    same path left behind is removed an hour later. `mode` is subject to the umask, as with `open`.

    Raises:
        OSError: the directory is missing, not writable, or full.
    """
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}.tmp"):
        with suppress(OSError):
            if time.time() - left.lstat().st_mtime > _ABANDONED_S:
                left.unlink()
    name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    new = open(name, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
    try:
        with new as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_directory(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that several processes replace; the system frees it when its holder dies."""
    # Not the file itself: that is replaced, and a lock stays with what was replaced.
    handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable; a no-op where directories cannot be opened (Windows)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
