"""Stores of users' vectors: a frame for each user, of one basis.

`SqliteStore` keeps them in a file, with what was accepted of each user: a million users, several processes.
`PublishedStore` reads the layout that `publish` writes, a directory or what fsspec reaches.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol

from ..basis import Basis
from ..errors import FrameError, RequestError, StoreError, TransferError, VectorError
from ..shipping import layout
from ..shipping.publish import open_target, publish
from ..system import check_path
from ..vector import Policy
from ..wire.frame import sequence_of
from ..wire.sequences import Accepted, SequenceLog, Source

_APPLICATION = 0x544C4556  # "TLEV": SQLite keeps it in the file's header
_VERSION = 1
_BUSY_S = 10.0
_CREATING = threading.Lock()  # a new file's descriptor is closed before any thread of ours opens it

_SCHEMA = f"""
CREATE TABLE bases (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE);
CREATE TABLE vectors (
    basis INTEGER NOT NULL, user TEXT NOT NULL, frame BLOB, sequence INTEGER NOT NULL,
    made REAL NOT NULL, changed REAL NOT NULL, PRIMARY KEY (basis, user)
) WITHOUT ROWID;
CREATE TABLE marks (
    digest TEXT NOT NULL, key TEXT NOT NULL, stream TEXT NOT NULL,
    sequence INTEGER NOT NULL, content TEXT NOT NULL, PRIMARY KEY (digest, key, stream)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""


@dataclass(frozen=True)
class Stored:
    """The vector of a user.

    Attributes:
        user: whose it is.
        frame: its bytes; a policy decides at each request whether they are applied.
        sequence: of the frame.
        made: when the user's first vector came, in seconds since 1970; 0 where that is not known.
        changed: when this one came; 0 likewise.
    """

    user: str
    frame: bytes
    sequence: int
    made: float = 0.0
    changed: float = 0.0


class Store(Protocol):
    """A store of users' vectors for one basis. Any thread may call it; each method raises StoreError.

    Attributes:
        marks: where the sequences that were accepted are kept; None leaves it to the policy.
    """

    marks: SequenceLog | None

    def get(self, user: str) -> Stored | None:
        """Return a user's vector; None where he has none."""

    def last(self, user: str) -> int:
        """Return the sequence of a user's vector, or of one that was deleted; 0 where he never had any."""

    def put(self, user: str, frame: bytes, policy: Policy) -> Stored:
        """Store a user's vector, once a policy accepts it; the one before is gone.

        Raises:
            VectorError: the policy refuses it; the subclass says why. The store stays as it was.
        """

    def delete(self, user: str) -> bool:
        """Remove a user's vector, and remember its sequence; say whether there was one."""

    def close(self) -> None:
        """Close it. Again is fine."""


def open_store(where: str | PathLike[str], basis: Basis) -> Store:
    """Open a store: a directory, or an address, has the published layout, and anything else is SQLite's.

    Raises: those of `PublishedStore` and `SqliteStore`.
    """
    if (isinstance(where, str) and "://" in where) or Path(where).is_dir():
        return PublishedStore(str(where), basis)
    return SqliteStore(where, basis)


def check_user(name: str) -> str:
    """Return the name of a user if it is one: a stream of the published layout that has a name.

    Raises:
        RequestError: it is not.
    """
    if name == layout.DEFAULT_STREAM:
        raise RequestError(
            f"{name!r} is no name of a user: it stands for the stream without a name, which is nobody's. Use "
            "another name",
            param="user",
        )
    if not layout.is_stream(name):
        raise RequestError(
            f"{name[:80]!r} is no name of a user: use 1 to 64 of A-Z a-z 0-9 . _ and -, beginning with a "
            "letter or digit",
            param="user",
        )
    return name


class SqliteStore:
    """Users' vectors in an SQLite file (WAL), which several processes may share.

    A vector that is deleted leaves its sequence behind, so that it does not come back.

    Args:
        path: of the file, made where it does not exist. Its directory must exist.
        basis: of the vectors.

    Raises:
        FileNotFoundError: its directory does not exist.
        StoreError: the file is damaged, or no store, or cannot be opened.
    """

    def __init__(self, path: str | PathLike[str], basis: Basis) -> None:
        check_path(path, StoreError)
        self.path, self._basis = Path(fspath(path)), basis
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"{self.path.parent} does not exist: make it, and the store is kept there"
            )
        self._reading, self._writing = threading.RLock(), threading.RLock()
        self._writer_thread: int | None = None
        self._closed = False
        with self._named_errors():
            self._writer = self._connect()
            try:
                self._set_up()
                self._reader = self._connect()
                self._basis_id = self._find_basis()
            except BaseException:
                self._writer.close()
                raise
        self.marks: SequenceLog | None = _StoreLog(self)

    def get(self, user: str) -> Stored | None:
        """Return a user's vector; see `Store`."""
        rows = self._read(
            "SELECT frame, sequence, made, changed FROM vectors WHERE basis = ? AND user = ?",
            (self._basis_id, check_user(user)),
        )
        return Stored(user, *rows[0]) if rows and rows[0][0] is not None else None

    def last(self, user: str) -> int:
        """Return the sequence of a user's vector, or of one that was deleted; see `Store`."""
        rows = self._read(
            "SELECT sequence FROM vectors WHERE basis = ? AND user = ?", (self._basis_id, check_user(user))
        )
        return int(rows[0][0]) if rows else 0

    def put(self, user: str, frame: bytes, policy: Policy) -> Stored:
        """Store a user's vector, once a policy accepts it; see `Store`.

        Vector and sequence are one transaction, where the policy keeps its sequences in `marks`.
        """
        check_user(user)
        with self._transaction() as writer:
            before = self.get(user)
            if before is not None and before.frame != frame:  # for a policy that has not seen it yet
                with suppress(VectorError), policy.admit(before.frame, self._basis, stream=user):
                    pass
            with policy.admit(frame, self._basis, stream=user) as vector:
                if vector.raw:
                    raise FrameError(
                        "a raw payload has no sequence: store a frame (`MicroVector.to_bytes` makes one)"
                    )
                if before is None:
                    deleted = Accepted(self.last(user))
                    deleted.check(Accepted(vector.sequence), (self._basis.digest, "", user))
                now = time.time()
                writer.execute(
                    "INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "frame = excluded.frame, sequence = excluded.sequence, changed = excluded.changed",
                    (self._basis_id, user, frame, vector.sequence, now, now),
                )
            stored = self.get(user)
        assert stored is not None
        return stored

    def put_many(self, frames: Iterable[tuple[str, bytes]], policy: Policy) -> None:
        """Store the vectors of many users (user, frame) in one transaction: all of them or none.

        Raises: those of `put`.
        """
        with self._transaction():
            for user, frame in frames:
                self.put(user, frame, policy)

    def delete(self, user: str) -> bool:
        """Remove a user's vector, and remember its sequence; see `Store`."""
        with self._transaction() as writer:
            done = writer.execute(
                "UPDATE vectors SET frame = NULL, changed = ? "
                "WHERE basis = ? AND user = ? AND frame IS NOT NULL",
                (time.time(), self._basis_id, check_user(user)),
            )
            return done.rowcount > 0

    def close(self) -> None:
        """Close the file. Again is fine."""
        self._closed = True
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        # A file that SQLite has open is never opened here: to close its descriptor would drop all POSIX locks
        # of this process on it, and the next process to leave the store would unlink the log in use.
        with _CREATING, suppress(OSError):  # SQLite says what is wrong with the file
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # vectors are personal
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _set_up(self) -> None:
        found = self._writer.execute("PRAGMA application_id").fetchone()[0]
        tables = "SELECT count(*) FROM sqlite_master"
        if not found and not self._writer.execute(tables).fetchone()[0]:
            self._write_ahead()
            with self._transaction() as writer:
                if not writer.execute(tables).fetchone()[0]:  # nor did another process meanwhile
                    for statement in _SCHEMA.split(";"):
                        writer.execute(statement)
            return
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if found != _APPLICATION:
            raise StoreError(
                f"{self.path} is an SQLite file, but no store of users' vectors: name another one"
            )
        if version != _VERSION:
            raise StoreError(
                f"the store {self.path} has version {version}, but this release reads version {_VERSION}"
            )

    def _write_ahead(self) -> None:
        """Let readers and a writer get on side by side. SQLite does not wait here for another process."""
        until = time.monotonic() + _BUSY_S
        while True:
            try:
                self._writer.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _find_basis(self) -> int:
        with self._transaction() as writer:
            writer.execute("INSERT OR IGNORE INTO bases (digest) VALUES (?)", (self._basis.digest,))
            found = writer.execute("SELECT id FROM bases WHERE digest = ?", (self._basis.digest,))
            return int(found.fetchone()[0])

    def _read(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Return the rows as this thread's transaction has them, or as they were committed last."""
        writing = self._writer_thread == threading.get_ident()
        with self._named_errors(), self._writing if writing else self._reading:
            self._check_open()
            return (self._writer if writing else self._reader).execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Change the file, alone and all or nothing; within itself it is the same transaction."""
        with self._writing, self._named_errors():
            if self._writer_thread is not None:
                yield self._writer
                return
            self._check_open()
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer_thread = threading.get_ident()
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            finally:
                self._writer_thread = None

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self.path} is closed")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _unreadable(self.path, error) from None


class _StoreLog(SequenceLog):
    """What was accepted of each user, in the store's file: a policy that is made with it keeps it there."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__()
        self._store = store

    def __repr__(self) -> str:
        return f"StoreLog({str(self._store.path)!r})"

    def store(self, source: Source, accepted: Accepted) -> None:
        """Write what was accepted in a transaction. Raises StoreError where the file cannot be written."""
        with self._store._transaction() as writer:
            if not self.settled(source, accepted):
                writer.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?, ?)", (*source, *accepted))

    def find(self, source: Source) -> Accepted:
        """Return what was accepted last, as the file says now."""
        rows = self._store._read(
            "SELECT sequence, content FROM marks WHERE digest = ? AND key = ? AND stream = ?", source
        )
        return Accepted(*rows[0]) if rows else Accepted()


class PublishedStore:
    """Users' vectors as `tinylora-edge publish` lays them out, a stream a user.

    What was accepted is not kept in the layout: give the policy a state file.

    Args:
        target: a directory, or an address that fsspec can read (`s3://bucket/vectors`).
        basis: of the vectors.

    Raises:
        StoreError: the target cannot be reached.
        MissingExtraError: the address needs fsspec, or a package of it, that is not installed.
    """

    marks: SequenceLog | None = None

    def __init__(self, target: str, basis: Basis) -> None:
        self._to, self._basis = target, basis
        try:
            self._target = open_target(target)
        except TransferError as error:
            raise StoreError(str(error)) from None

    def get(self, user: str) -> Stored | None:
        """Return a user's vector; see `Store`."""
        try:
            frame = self._target.read(layout.latest(self._basis.id, check_user(user)))
        except (OSError, TransferError) as error:
            raise _unreadable(self._to, error) from None
        return None if frame is None else Stored(user, frame, sequence_of(frame))

    def last(self, user: str) -> int:
        """Return the sequence of a user's vector; see `Store`."""
        found = self.get(user)
        return 0 if found is None else found.sequence

    def put(self, user: str, frame: bytes, policy: Policy) -> Stored:
        """Publish a user's vector, once a policy accepts it; see `Store`."""
        with policy.admit(frame, self._basis, stream=check_user(user)) as vector:
            try:
                publish(frame, self._basis, self._to, stream=user)
            except TransferError as error:
                raise StoreError(str(error)) from None
        return Stored(user, frame, vector.sequence)

    def delete(self, user: str) -> bool:
        """Refuse with a StoreError: devices hold what was published."""
        raise StoreError(
            f"{self._to} is a layout of published vectors, from which nothing is deleted: publish a "
            "vector of zeros with a higher sequence"
        )

    def close(self) -> None:
        """Nothing to close."""


def _unreadable(where: object, error: object) -> StoreError:
    return StoreError(f"the store {where} cannot be used: {error}")
