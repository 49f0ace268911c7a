"""The machine under this package, and the version that runs on it: whole writes, cores, waiting threads."""

from __future__ import annotations

import glob
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

__version__ = "0.1.0"
"""The version, in one place: pyproject.toml reads it from here."""

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


@contextmanager
def first_interrupt(stop: Callable[[], object]) -> Iterator[None]:
    """Let the first Ctrl-C of a block call `stop`; a second one does as usual. In the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SPIN = 10_000
"""Rounds that libgomp spins before a thread sleeps, a tenth of a millisecond; its default is 300,000."""

OPENMP_VARIABLES = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"
"""Variables that decide how OpenMP's threads wait."""


def set_waiting() -> None:
    """Let OpenMP's threads spin briefly, in libraries loaded from now on; what the user has set stays.

    llama.cpp's threads meet after every operation, hundreds of times a token. Where other work wants the
    cores, the thread that is waited for is often not running, and the one that spins takes its time away.
    """
    if not any(name in os.environ for name in OPENMP_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable; a no-op where directories cannot be opened (Windows)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
