"""What a policy remembers: the highest sequence accepted from each (factors, key, user), and its content.

`SequenceLog` keeps it in memory. `SequenceFile` keeps it on disk, through restarts, kills and power cuts
(docs/FORMAT.md, "State files"): a file is only ever replaced whole, under a lock that all processes which
share it take. A sequence never falls.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

from ..errors import RollbackError, VectorError
from ..jsonio import parse_json
from ..limits import DOCUMENT_BYTES
from ..writes import atomic_write, locked, open_file

Source = tuple[str, str, str]  # where a vector is from: factors' digest, id of the key (empty: none), user
_FORMAT = 4
_VALUE = re.compile(r"([0-9]{1,5}):((?:[0-9a-f]{32})?)\Z")


class Accepted(NamedTuple):
    """The sequence of an accepted vector, and a hash of its values (empty: any other values are accepted)."""

    sequence: int = 0
    content: str = ""

    def check(self, later: Accepted, source: Source) -> None:
        """Raise RollbackError unless a vector may follow this one, or is this one again."""
        _, key, user = source
        of = f"{f' from user {user!r}' if user else ''}{f' under key {key}' if key else ''}"
        if later.sequence < self.sequence:
            raise RollbackError(
                f"the frame has sequence {later.sequence}, but {self.sequence} was already accepted{of}"
            )
        if later.sequence == self.sequence and self.content and later.content not in ("", self.content):
            raise RollbackError(
                f"another vector with this sequence, {self.sequence}, was already accepted{of}: use a "
                "higher sequence"
            )


class SequenceLog:
    """The highest sequence accepted from each source, in memory. Threads may share it.

    A subclass that keeps it elsewhere overrides `find` and `store`.
    """

    def __init__(self) -> None:
        self._accepted: dict[Source, Accepted] = {}
        self._lock = RLock()

    def record(self, source: Source, accepted: Accepted) -> None:
        """Record what was accepted, durably where it is kept on disk; what is recorded is not written again.

        RollbackError: a higher sequence is there, or this one with other content. VectorError, OSError,
        StoreError: what is kept cannot be read or written.
        """
        if not self.settled(source, accepted):
            self.store(source, accepted)

    def settled(self, source: Source, accepted: Accepted) -> bool:
        """Tell whether this is recorded already. RollbackError: it may not be recorded."""
        found = self.find(source)
        found.check(accepted, source)
        return found == accepted or (found.sequence == accepted.sequence and not accepted.content)

    def find(self, source: Source) -> Accepted:
        """Return the last that was accepted from a source; sequence 0 where nothing was."""
        return self._accepted.get(source, Accepted())

    def store(self, source: Source, accepted: Accepted) -> None:
        """Write what was accepted, unless it is `settled`, which is asked again under the lock."""
        with self._lock:
            if not self.settled(source, accepted):
                self._accepted[source] = accepted


class SequenceFile(SequenceLog):
    """A log in a file, which several processes may share.

    A file that is no valid state is refused at every call, since to go on without it would be to forget it. A
    missing file is an empty state, and is made with the first sequence. Each call reads what the file says
    now, and `record` returns once the file is on disk. `<path>.lock` is the lock.

    OSError: its directory does not exist, or the file cannot be read. VectorError: it is damaged.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__()
        self._path = Path(os.path.realpath(path))  # so that a link is not replaced by the file
        self._read: bytes | None = None  # the content that was parsed last
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"{self._path.parent} does not exist: make this directory for the state")
        self._refresh()

    def find(self, source: Source) -> Accepted:
        """Return the last that was accepted from a source, as the file says now."""
        with self._lock:
            self._refresh()
            return super().find(source)

    def store(self, source: Source, accepted: Accepted) -> None:
        """Replace the file, under the lock of all processes that share it."""
        with self._lock, locked(self._path):
            if not self.settled(source, accepted):
                data = encode({**self._accepted, source: accepted})
                with atomic_write(self._path, mode=0o600) as file:
                    file.write(data)
                self._accepted[source], self._read = accepted, data

    def _refresh(self) -> None:
        try:
            with open_file(self._path) as file:
                data = file.read(DOCUMENT_BYTES + 1)
        except FileNotFoundError:  # somebody removed it on purpose; this process still knows what it read
            return
        if data == self._read:
            return
        try:
            fresh = decode(data)
        except ValueError as error:
            raise VectorError(
                f"the state {self._path} is damaged: {error}. Restore it, or remove it and lose the "
                "sequences in it"
            ) from None
        for source, accepted in fresh.items():
            self._accepted[source] = max(accepted, self._accepted.get(source, Accepted()))
        self._read = data


def encode(accepted: dict[Source, Accepted]) -> bytes:
    """Return the content of a state file. VectorError: it would be too long to be read again."""
    tree: dict[str, dict[str, dict[str, str]]] = {}
    for (digest, key, user), (sequence, content) in sorted(accepted.items()):
        tree.setdefault(digest, {}).setdefault(key, {})[user] = f"{sequence}:{content}"
    data = json.dumps({"format": _FORMAT, "sha256": _digest(tree), "accepted": tree}, indent=1).encode()
    if len(data) > DOCUMENT_BYTES:
        raise VectorError(
            f"the state would have {len(data):,} bytes, of {DOCUMENT_BYTES:,} at most: split it"
        )
    return data


def decode(data: bytes) -> dict[Source, Accepted]:
    """Return what the content of a state file says. ValueError: it is not as `encode` writes it."""
    document = parse_json(data)
    if not isinstance(document, dict) or document.keys() != {"format", "sha256", "accepted"}:
        raise ValueError("it is not an object with format, sha256 and accepted")
    if document["format"] != _FORMAT or document["sha256"] != _digest(document["accepted"]):
        raise ValueError(f"it is of another format than {_FORMAT}, or does not match its SHA-256")
    accepted: dict[Source, Accepted] = {}
    try:
        for digest, keys in document["accepted"].items():
            for key, users in keys.items():
                for user, value in users.items():
                    sequence, content = _VALUE.match(value).groups()  # type: ignore[union-attr]
                    accepted[digest, key, user] = Accepted(int(sequence), content)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"its content has another structure ({error})") from None
    return accepted


def _digest(tree: Any) -> str:
    """Return the SHA-256 in hexadecimal of a tree as JSON: keys in order, ASCII, no spaces."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
