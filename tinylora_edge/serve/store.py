"""The store of users' vectors: an SQLite file with a frame for each, and what was accepted of them."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..basis import Bases
from ..errors import RequestError, StoreError
from ..vector import Policy
from ..wire.frame import DEFAULT_USER, RULE, is_portable
from ..wire.sequences import Accepted, SequenceLog, Source

_APPLICATION = 0x544C4556  # "TLEV": SQLite keeps it in the file's header
_VERSION = 3
_BUSY_S = 10.0

_SCHEMA = f"""
CREATE TABLE factors (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE);
CREATE TABLE vectors (
    factors INTEGER NOT NULL, user TEXT NOT NULL, frame BLOB NOT NULL, sequence INTEGER NOT NULL,
    PRIMARY KEY (factors, user)
) WITHOUT ROWID;
CREATE TABLE marks (
    digest TEXT NOT NULL, key TEXT NOT NULL, stream TEXT NOT NULL,
    sequence INTEGER NOT NULL, content TEXT NOT NULL, PRIMARY KEY (digest, key, stream)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""
_FROM_2 = f"""
ALTER TABLE vectors DROP COLUMN made;
ALTER TABLE vectors DROP COLUMN changed;
DELETE FROM vectors WHERE frame IS NULL;
PRAGMA user_version = {_VERSION};
"""


@dataclass(frozen=True)
class Stored:
    """The vector of a user: a frame, which a policy checks at each request, and the frame's sequence."""

    user: str
    frame: bytes
    sequence: int


def is_user(name: str) -> bool:
    """Whether a user may have this name."""
    return is_portable(name) and name != DEFAULT_USER


def check_user(name: str) -> str:
    """Return a name that a user may have. RequestError: no user may have it."""
    if not is_user(name):
        raise RequestError(
            f"{name[:80]!r} is no name of a user: {RULE}, and not {DEFAULT_USER!r}", param="user"
        )
    return name


class Store:
    """Users' vectors of one model's factors in an SQLite file (WAL), which threads and processes may share.

    A user has one, of any size: a newer one of 840 numbers takes the place of an older one of 13. Frame and
    sequence are written in one transaction where the policy is made with `state=store.sequences`.

    FileNotFoundError: its directory does not exist.
    StoreError: the file is damaged, or no store, or cannot be opened; of methods, it cannot be used.
    """

    def __init__(self, path: str | PathLike[str], bases: Bases) -> None:
        self.path, self._bases = Path(path), bases
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path.parent} does not exist: make it for the store")
        self._lock = threading.RLock()
        with _named_errors(self.path):
            # Nothing but SQLite ever opens the file: who closes another descriptor of it drops all locks of
            # this process on it, and the next process to leave the store would unlink the log in use.
            self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
        try:
            self._set_up()
        except BaseException:
            self._connection.close()
            raise
        self.sequences: SequenceLog = _StoreLog(self)

    def get(self, user: str) -> Stored | None:
        """Return a user's vector; None where they have none."""
        query = "SELECT frame, sequence FROM vectors WHERE factors = ? AND user = ?"
        rows = self.read(query, (self._factors_id, check_user(user)))
        return Stored(user, *rows[0]) if rows else None

    def put(self, user: str, frame: bytes, policy: Policy) -> Stored:
        """Store a user's vector in place of the one before. VectorError: the policy refuses it."""
        check_user(user)
        with self.transaction() as connection, policy.admit(frame, self._bases, user=user) as vector:
            row = (self._factors_id, user, frame, vector.sequence)
            connection.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", row)
        return Stored(user, frame, vector.sequence)

    def delete(self, user: str) -> bool:
        """Remove a user's vector, but not what was accepted of them; return whether there was one."""
        statement = "DELETE FROM vectors WHERE factors = ? AND user = ?"
        with self.transaction() as connection:
            return connection.execute(statement, (self._factors_id, check_user(user))).rowcount > 0

    def close(self) -> None:
        """Close the file. Again is fine."""
        with self._lock:
            self._connection.close()

    def read(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self._lock, _named_errors(self.path):
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction; one inside of another is a part of it."""
        with self._lock, _named_errors(self.path):
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _set_up(self) -> None:
        self.read("PRAGMA synchronous = FULL", ())
        if self.path.is_file() and not self.path.stat().st_size:
            os.chmod(self.path, 0o600)  # vectors are personal
        with self.transaction() as connection:
            (application,), (version,) = (
                self.read(f"PRAGMA {name}", ())[0] for name in ("application_id", "user_version")
            )
            statements = ""
            if not application and not self.read("SELECT count(*) FROM sqlite_master", ())[0][0]:
                statements = _SCHEMA
            elif application != _APPLICATION:
                raise StoreError(f"{self.path} is SQLite, but no store of users' vectors: name another file")
            elif version == 2:
                statements = _FROM_2
            elif version != _VERSION:
                raise StoreError(
                    f"{self.path} has version {version}, but this release reads {_VERSION}: name a new file"
                )
            for statement in statements.split(";"):
                connection.execute(statement)
            digest = (self._bases.factors.digest,)
            connection.execute("INSERT OR IGNORE INTO factors (digest) VALUES (?)", digest)
            self._factors_id = int(self.read("SELECT id FROM factors WHERE digest = ?", digest)[0][0])
        with suppress(StoreError):  # another process has it open, and does so or did
            self.read("PRAGMA journal_mode = WAL", ())  # readers and a writer get on side by side


class _StoreLog(SequenceLog):
    """What was accepted of each user, in the store's file: a policy that is made with it keeps it there."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def store(self, source: Source, accepted: Accepted) -> None:
        """Write what was accepted in a transaction. Raises StoreError where the file cannot be written."""
        with self._store.transaction() as connection:
            if not self.settled(source, accepted):
                row = (*source, *accepted)
                connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?, ?)", row)

    def find(self, source: Source) -> Accepted:
        """Return what was accepted last, as the file says now."""
        rows = self._store.read(
            "SELECT sequence, content FROM marks WHERE digest = ? AND key = ? AND stream = ?", source
        )
        return Accepted(*rows[0]) if rows else Accepted()


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"the store {path} cannot be used: {error}") from None
