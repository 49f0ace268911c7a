"""Atomic writes, locks of files that several processes replace, and reads that cannot block."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from os import PathLike
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: str | PathLike[str], *, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; on leaving, make it `path` durably.

    On an exception the temporary file is removed and `path` stays as it was. The umask applies to `mode`.
    OSError, of `path` and not of the temporary file: the directory is missing, not writable, or full.
    """
    path = Path(path)
    name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(name, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError) and error.filename in (None, str(name)):
            error.filename = str(path)
        raise
    sync_directory(path.parent)


@contextmanager
def open_file(path: str | PathLike[str]) -> Iterator[BufferedReader]:
    """Open a regular file for reading. OSError: it cannot be opened, or is a pipe or a device."""
    at_once = getattr(os, "O_NONBLOCK", 0)  # to open a pipe would wait for somebody who writes
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | at_once)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a regular file", os.fspath(path))
        yield file


@contextmanager
def locked(path: Path, *, wait: bool = True, keep: bool = True) -> Iterator[None]:
    """Hold the lock `path`.lock during the block. The system frees it when its holder dies.

    The lock's file stays; with `keep=False`, which all who lock it must then pass, it is removed.
    BlockingIOError: another process holds the lock, and `wait` is False; or, with `keep=False`, it has just
    removed the file.
    """
    # The lock is not on `path` itself: that is replaced, and a lock would stay with the file that it was on.
    lock = f"{path}.lock"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.name == "nt":
            _lock_byte(handle, lock, wait)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if not keep and not _is_at(handle, lock):  # its last holder has removed it meanwhile
            raise BlockingIOError(errno.EWOULDBLOCK, "another process has just held it", lock)
        try:
            yield
        finally:
            if not keep and os.name != "nt":
                Path(lock).unlink(missing_ok=True)
    finally:
        os.close(handle)
        if not keep and os.name == "nt":  # there a file that anybody has open cannot be removed
            with suppress(OSError):
                os.unlink(lock)


def _lock_byte(handle: int, lock: str, wait: bool) -> None:
    """Lock a file on Windows as `flock` does elsewhere: LK_LOCK alone would give up after 10 seconds."""
    import msvcrt

    locking: Any = msvcrt.locking  # type: ignore[attr-defined,unused-ignore]
    while True:
        try:
            locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            return
        except PermissionError:
            if not wait:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process holds it", lock) from None
        time.sleep(0.05)


def _is_at(handle: int, path: str) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable; a no-op where directories cannot be opened (Windows)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
