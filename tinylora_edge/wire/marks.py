"""The memory of a policy: the highest sequence accepted of each (basis, key, stream).

`Marks` is the rule that a policy asks, and lives in memory; `StateFile` keeps the same on disk, through
restarts, kills and power cuts. A state file is text:

    tinylora state 1 <SHA-256 of what follows, in hexadecimal>
    {"<basis digest>": {"<key id>": {"<stream>": <sequence>}}}

It is only ever replaced whole (temporary file, fsync, rename, fsync of the directory), under a lock that
all processes which share it take, and a mark only ever rises.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

from .._system import atomic_write
from ..errors import VectorError

Mark = tuple[str, str, str]
"""Digest of the basis, id of the key (empty: no key), stream."""

MAX_BYTES = 1 << 24
"""No state file is longer: that is a hundred thousand streams."""

MAX_STREAM_CHARACTERS = 128

_HEAD = "tinylora state 1 "


class Marks:
    """The marks of a policy without a state file: they last as long as it does."""

    def __init__(self) -> None:
        self._highest: dict[Mark, int] = {}

    def __repr__(self) -> str:
        return f"Marks({len(self._highest)} in memory)"

    def highest(self, mark: Mark) -> int:
        """Return the highest sequence recorded; 0 where there is none."""
        return self._highest.get(mark, 0)

    def record(self, mark: Mark, sequence: int) -> None:
        """Raise a mark to a sequence; a lower one changes nothing."""
        if sequence > self.highest(mark):
            self._highest[mark] = sequence


class StateFile:
    """The marks of a policy in a file, for one process or several.

    The rules, in the order in which they hold:

    1. A file that is there and cannot be read as a state is refused, when the policy is made and ever
       after: to go on without it would be to forget it (VectorError).
    2. A file that is not there is an empty state; it appears with the first mark.
    3. `highest` is what the file says now, whichever process wrote it.
    4. `record` returns when the new state is on disk, or raises and leaves the old one (OSError).
    5. No mark is ever written lower than it was.

    Args:
        path: the file; its directory must exist. `<path>.lock` beside it is the lock.

    Raises:
        FileNotFoundError: its directory does not exist.
        VectorError: the file is damaged.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = Path(os.path.realpath(path))  # a link stays one
        if not self._path.parent.is_dir():
            raise FileNotFoundError(
                f"{self._path.parent} does not exist: make it, and the state is kept there"
            )
        self._seen: tuple[int, ...] | None = None
        self._marks: dict[Mark, int] = {}
        self._refresh()

    def __repr__(self) -> str:
        return f"StateFile({str(self._path)!r})"

    def highest(self, mark: Mark) -> int:
        """Return the highest sequence recorded; 0 where there is none.

        Raises:
            VectorError: the file is damaged.
            OSError: it cannot be read.
        """
        self._refresh()
        return self._marks.get(mark, 0)

    def record(self, mark: Mark, sequence: int) -> None:
        """Raise a mark to a sequence, durably; a lower one, or the same, writes nothing.

        Raises:
            VectorError: the file is damaged.
            OSError: it cannot be written; what was there stays.
        """
        if sequence <= self.highest(mark):
            return
        with _locked(self._path):
            self._seen = None  # two files may look alike to `stat`; what is written next must not be lower
            self._refresh()
            if sequence <= self._marks.get(mark, 0):
                return
            self._sweep()
            marks = {**self._marks, mark: sequence}
            with atomic_write(self._path, mode=0o600) as file:
                file.write(encode(marks))
            self._refresh()

    def _refresh(self) -> None:
        """Read the file again where it is another than the one that was read last."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            # Another process may remove it on purpose; in this one, what was seen stays known.
            self._seen = None
            return
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen == self._seen:
            return
        if not stat.S_ISREG(found.st_mode):
            raise VectorError(f"the state {self._path} is not a regular file: name another one")
        with open(self._path, "rb") as file:
            read = os.fstat(file.fileno())
            data = file.read(MAX_BYTES + 1)
        try:
            fresh = decode(data)
        except ValueError as error:
            raise VectorError(
                f"the state {self._path} is damaged: {error}. Restore it; to delete it is to accept old "
                "vectors again"
            ) from None
        for mark, sequence in fresh.items():
            self._marks[mark] = max(sequence, self._marks.get(mark, 0))
        self._seen = (read.st_ino, read.st_size, read.st_mtime_ns)

    def _sweep(self) -> None:
        """Remove what killed processes left half written. Whoever writes holds the lock, and that is us."""
        for left in self._path.parent.glob(f".{self._path.name}.*.tmp"):
            with suppress(FileNotFoundError):
                left.unlink()


def encode(marks: dict[Mark, int]) -> bytes:
    """Return the content of a state file.

    Raises:
        VectorError: it would be longer than any that is read.
    """
    tree: dict[str, dict[str, dict[str, int]]] = {}
    for (digest, key, stream), sequence in sorted(marks.items()):
        tree.setdefault(digest, {}).setdefault(key, {})[stream] = sequence
    body = json.dumps(tree, indent=1).encode() + b"\n"
    head = f"{_HEAD}{hashlib.sha256(body).hexdigest()}\n".encode()
    if len(head) + len(body) > MAX_BYTES:
        raise VectorError(
            f"the state would have {len(head) + len(body):,} bytes, and at most {MAX_BYTES:,} are kept: use "
            "fewer streams, or a state file for each part of them"
        )
    return head + body


def decode(data: bytes) -> dict[Mark, int]:
    """Return the marks in the content of a state file.

    Raises:
        ValueError: it is not what `encode` writes.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    head, _, body = data.partition(b"\n")
    if not head.startswith(_HEAD.encode()):
        raise ValueError(f"it does not begin with {_HEAD.strip()!r}")
    if head[len(_HEAD) :] != hashlib.sha256(body).hexdigest().encode():
        raise ValueError("its content does not match its SHA-256")
    try:
        return dict(_marks(json.loads(body)))
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"its content has another structure ({error})") from None


def _marks(tree: Any) -> Iterator[tuple[Mark, int]]:
    for digest, keys in tree.items():
        for key, streams in keys.items():
            for stream, sequence in streams.items():
                if type(sequence) is not int or not 0 <= sequence < 1 << 16:
                    raise ValueError(f"it holds {sequence!r} where a sequence should be")
                yield (digest, key, stream), sequence


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a state file; the system lets go of it when its holder dies."""
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
