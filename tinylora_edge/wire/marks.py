"""The memory of a policy: the highest sequence accepted of each (basis, key, stream), and its content.

`Marks` is the rule that a policy asks, and lives in memory; `StateFile` keeps the same on disk, through
restarts, kills and power cuts. A state file is text:

    tinylora state 2 <SHA-256 of what follows, in hexadecimal>
    {"<basis digest>": {"<key id>": {"<stream>": "<sequence>:<content>"}}}

The content is 32 hexadecimal digits that stand for the values, or nothing where it is not known. Files of
version 1, whose marks are the sequences alone, are read too. A file is only ever replaced whole (temporary
file, fsync, rename, fsync of the directory), under a lock that all processes which share it take, and a mark
only ever rises.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

from ..documents import parse_json
from ..errors import RollbackError, VectorError
from ..limits import STATE_BYTES, STREAM_CHARACTERS
from ..system import atomic_write, check_path, locked, sweep

Mark = tuple[str, str, str]
"""Digest of the basis, id of the key (empty: no key), stream."""

_HEAD = "tinylora state 2 "
_HEAD_1 = "tinylora state 1 "
_VALUE = re.compile(r"([0-9]{1,5}):((?:[0-9a-f]{32})?)\Z")


def mark(digest: str, key: str, stream: str) -> Mark:
    """Return the mark of a stream.

    Raises:
        VectorError: the stream's name is too long to be kept.
    """
    if len(stream) > STREAM_CHARACTERS:
        raise VectorError(
            f"the stream's name has {len(stream)} characters, and at most {STREAM_CHARACTERS} are kept: "
            f"{stream[:20]!r}..."
        )
    return digest, key, stream


class Accepted(NamedTuple):
    """A vector that was accepted.

    Attributes:
        sequence: of its frame.
        content: what stands for its values; empty where that does not matter, or is not known.
    """

    sequence: int = 0
    content: str = ""

    def check(self, later: Accepted, mark: Mark) -> None:
        """Check that another vector may come after this one, or again.

        Raises:
            RollbackError: its sequence is lower, or the same with other content.
        """
        _, key, stream = mark
        of = f"{f' from stream {stream!r}' if stream else ''}{f' under key {key}' if key else ''}"
        if later.sequence < self.sequence:
            raise RollbackError(
                f"the frame has sequence {later.sequence}, but {self.sequence} was already accepted{of}: an "
                "older vector is not applied again"
            )
        if later.sequence == self.sequence and self.content and later.content not in ("", self.content):
            raise RollbackError(
                f"the frame has sequence {later.sequence}, but another vector with this sequence was already "
                f"accepted{of}: a sequence is used once, so frame it with a higher one"
            )


class Marks:
    """The marks of a policy without a state file: they last as long as it does. Safe from any thread."""

    def __init__(self) -> None:
        self._marks: dict[Mark, Accepted] = {}
        self._lock = RLock()

    def __repr__(self) -> str:
        return f"Marks({len(self._marks)} in memory)"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=RLock())

    def highest(self, mark: Mark) -> int:
        """Return the highest sequence recorded; 0 where there is none. Errors: those of `check`."""
        return self._find(mark).sequence

    def check(self, mark: Mark, sequence: int, content: str = "") -> None:
        """Check that a vector may be accepted now.

        Raises:
            RollbackError: a higher sequence was recorded, or the same with other content.
        """
        self._find(mark).check(Accepted(sequence, content), mark)

    def record(self, mark: Mark, sequence: int, content: str = "") -> None:
        """Raise a mark to a sequence, or change nothing.

        Raises:
            RollbackError: as for `check`, also where another thread recorded it meanwhile.
        """
        with self._lock:
            self.check(mark, sequence, content)
            self._marks[mark] = Accepted(sequence, content)

    def _find(self, mark: Mark) -> Accepted:
        return self._marks.get(mark, Accepted())


class StateFile(Marks):
    """The marks of a policy in a file, for one process or several.

    The rules, in the order in which they hold:

    1. A file that is there and cannot be read as a state is refused, when the policy is made and ever
       after: to go on without it would be to forget it (VectorError).
    2. A file that is not there is an empty state; it appears with the first mark.
    3. `highest` and `check` ask what the file says now, whichever process wrote it.
    4. `record` returns when the new state is on disk, or raises and leaves the old one (OSError).
    5. No mark is ever written lower than it was; who tries is told (RollbackError).

    Args:
        path: the file; its directory must exist. `<path>.lock` beside it is the lock.

    Raises:
        FileNotFoundError: its directory does not exist.
        VectorError: the file is damaged.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__()
        check_path(path, VectorError)
        self._path = Path(os.path.realpath(path))  # a link stays one
        if not self._path.parent.is_dir():
            raise FileNotFoundError(
                f"{self._path.parent} does not exist: make it, and the state is kept there"
            )
        self._seen: tuple[int, ...] | None = None
        self._refresh()

    def __repr__(self) -> str:
        return f"StateFile({str(self._path)!r})"

    def record(self, mark: Mark, sequence: int, content: str = "") -> None:
        """Raise a mark to a sequence, durably; what is there already writes nothing.

        Raises:
            RollbackError: as for `check`, also where another thread or process recorded it meanwhile.
            VectorError: the file is damaged.
            OSError: it cannot be written; what was there stays.
        """
        if self._settled(mark, Accepted(sequence, content)):
            return
        with self._lock, locked(self._path):
            self._seen = None  # two files may look alike to `stat`; what is written next must not be lower
            if self._settled(mark, Accepted(sequence, content)):
                return
            sweep(self._path, age=0)  # whoever writes holds the lock, and that is us
            marks = {**self._marks, mark: Accepted(sequence, content)}
            with atomic_write(self._path, mode=0o600) as file:
                file.write(encode(marks))
            self._refresh()

    def _settled(self, mark: Mark, accepted: Accepted) -> bool:
        """Whether there is nothing to write. Raises RollbackError where it may not be written."""
        found = self._find(mark)
        found.check(accepted, mark)
        return found == accepted or (found.sequence == accepted.sequence and not accepted.content)

    def _find(self, mark: Mark) -> Accepted:
        with self._lock:
            self._refresh()
            return super()._find(mark)

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
            data = file.read(STATE_BYTES + 1)
        try:
            fresh = decode(data)
        except ValueError as error:
            raise VectorError(
                f"the state {self._path} is damaged: {error}. Restore it; to delete it is to accept old "
                "vectors again"
            ) from None
        for mark, accepted in fresh.items():
            self._marks[mark] = max(accepted, self._marks.get(mark, Accepted()))
        self._seen = (read.st_ino, read.st_size, read.st_mtime_ns)


def encode(marks: dict[Mark, Accepted]) -> bytes:
    """Return the content of a state file.

    Raises:
        VectorError: it would be longer than any that is read.
    """
    tree: dict[str, dict[str, dict[str, str]]] = {}
    for (digest, key, stream), (sequence, content) in sorted(marks.items()):
        tree.setdefault(digest, {}).setdefault(key, {})[stream] = f"{sequence}:{content}"
    body = json.dumps(tree, indent=1).encode() + b"\n"
    head = f"{_HEAD}{hashlib.sha256(body).hexdigest()}\n".encode()
    if len(head) + len(body) > STATE_BYTES:
        raise VectorError(
            f"the state would have {len(head) + len(body):,} bytes, and at most {STATE_BYTES:,} are kept: "
            "use fewer streams, or a state file for each part of them"
        )
    return head + body


def decode(data: bytes) -> dict[Mark, Accepted]:
    """Return the marks in the content of a state file.

    Raises:
        ValueError: it is not what `encode` writes.
    """
    if len(data) > STATE_BYTES:
        raise ValueError(f"it has more than {STATE_BYTES:,} bytes")
    head, _, body = data.partition(b"\n")
    if not head.startswith((_HEAD.encode(), _HEAD_1.encode())):
        raise ValueError(f"it does not begin with {_HEAD.strip()!r}")
    if head[len(_HEAD) :] != hashlib.sha256(body).hexdigest().encode():
        raise ValueError("its content does not match its SHA-256")
    try:
        return dict(_marks(parse_json(body, limit=STATE_BYTES)))
    except (AttributeError, TypeError) as error:
        raise ValueError(f"its content has another structure ({error})") from None


def _marks(tree: Any) -> Iterator[tuple[Mark, Accepted]]:
    for digest, keys in tree.items():
        for key, streams in keys.items():
            for stream, value in streams.items():
                # Version 1 has an integer here.
                found = _VALUE.match(f"{value}:" if type(value) is int else value)
                if found is None or int(found[1]) >= 1 << 16:
                    raise ValueError(f"it holds {str(value)[:40]!r} where a sequence should be")
                yield (digest, key, stream), Accepted(int(found[1]), found[2])
