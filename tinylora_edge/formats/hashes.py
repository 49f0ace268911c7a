"""Hashes of files: read as a stream, and remembered while the system says that a file is the same."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from ..documents import parse_json
from ..errors import TrustError
from ..limits import BUNDLE_FILES, DOCUMENT_BYTES
from ..system import atomic_write, locked

Stamp: TypeAlias = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of the last change of content and of anything, in nanoseconds."""

_READINGS = 3
_SETTLED_NS = 2_000_000_000
"""A file that changed later than this before it was hashed may change again in the same tick of the clock."""


def stamp(path: Path) -> Stamp:
    """Return what the system says about a file, which differs where it is another or was changed.

    Raises:
        TrustError: it is no regular file.
        OSError: it cannot be asked for.
    """
    return _stamp(os.stat(path), path)


def hash_file(path: Path) -> tuple[str, Stamp]:
    """Return the SHA-256 of a file in hexadecimal, and the stamp that it belongs to.

    A file that another process links meanwhile has another stamp and the same content: it is read again.

    Raises:
        TrustError: it is no regular file, or changed whenever it was read.
        OSError: it cannot be read.
    """
    stamp(path)  # a pipe would wait for ever to be opened
    for _ in range(_READINGS):
        with open(path, "rb") as file:
            before = _stamp(os.fstat(file.fileno()), path)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if _stamp(os.fstat(file.fileno()), path) == before:
                return digest, before
    raise TrustError(f"{path} changed while its signature was checked: load it again once it is whole")


class Hashes:
    """Hashes that are computed once, as long as the stamps of their files stay.

    A stamp has the time of the last change of anything, which no program sets: to change a file and leave its
    stamp takes the system's clock, or the disk in another machine.

    Args:
        path: a file that keeps them through restarts; None keeps nothing. What is damaged in it is forgotten.
            Whoever can write to it can make a changed file pass.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known = {} if path is None else _read(path)
        self._new: dict[str, tuple[Stamp, str]] = {}

    def of(self, path: Path) -> tuple[str, Stamp]:
        """Return the hash of a file and its stamp. Errors: those of `hash_file`."""
        name, now = os.path.realpath(path), stamp(path)
        found = self._known.get(name)
        if found is not None and found[0] == now:
            return found[1], now
        digest, then = hash_file(path)
        if time.time_ns() - max(then[3:]) > _SETTLED_NS:
            self._new[name] = then, digest
        return digest, then

    def keep(self) -> None:
        """Write what was computed since; where that fails, it is computed again the next time."""
        if self._path is None or not self._new:
            return
        with suppress(OSError), locked(self._path):
            kept = {name: known for name, known in _read(self._path).items() if os.path.exists(name)}
            kept |= self._new
            rows = {name: [*then, digest] for name, (then, digest) in list(kept.items())[-BUNDLE_FILES:]}
            with atomic_write(self._path, mode=0o600) as file:
                file.write(json.dumps(rows, indent=1).encode())
        self._known |= self._new
        self._new = {}


def _stamp(found: os.stat_result, path: Path) -> Stamp:
    if not stat.S_ISREG(found.st_mode):
        raise TrustError(f"{path} is not a regular file: a bundle that is signed has no others")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path) -> dict[str, tuple[Stamp, str]]:
    known: dict[str, tuple[Stamp, str]] = {}
    with suppress(OSError, ValueError, TypeError, AttributeError):
        with open(path, "rb") as file:
            rows = parse_json(file.read(DOCUMENT_BYTES + 1))
        for name, (device, inode, size, changed, touched, digest) in rows.items():
            then = (device, inode, size, changed, touched)
            if all(type(number) is int for number in then) and type(digest) is str:
                known[name] = then, digest
    return known
