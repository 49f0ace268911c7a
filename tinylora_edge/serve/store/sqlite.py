"""A store in an SQLite file: a row a user, and what was accepted of each, for one process or several."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ...basis import Basis
from ...errors import ChecksumError, FrameError, StoreError, VectorError
from ...system import check_path
from ...vector import Policy
from ...wire import frame as wire
from ...wire import tags
from ...wire.marks import Accepted, Mark, Marks
from .user import Stored, check_user, unreadable

_APPLICATION = 0x544C4556  # "TLEV": SQLite keeps it in the file's header
_VERSION = 1
_BUSY_S = 10.0
_BATCH = 10_000  # rows of a transaction of an import
_CRC32 = tags.Crc32()
_CREATING = threading.Lock()  # a new file's descriptor is closed before any thread of ours opens it
_PAGE = 1_000  # rows that are read at once where all are listed

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
class Imported:
    """The outcome of an import, in vectors.

    Attributes:
        added: of users who had none.
        replaced: with a higher sequence than before.
        unchanged: that were there already.
        refused: with a lower sequence, or the same and other bytes.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    refused: int = 0


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
        self.path = Path(fspath(path))
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"{self.path.parent} does not exist: make it, and the store is kept there"
            )
        self._basis, self._digest = basis, bytes.fromhex(basis.digest)
        self._lengths = {  # of frames with a MAC or a signature, by their first byte
            bytes([version << 4 | code | kind << 2]): wire.frame_bytes(basis.size, dtype, kind, version)
            for version in wire.VERSIONS
            for code, dtype in enumerate(wire.DTYPES)
            for kind in (tags.HMAC, tags.ED25519)
        }
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
        self.marks: Marks | None = _StoreMarks(self)

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

        What was imported before counts as accepted where the policy would have accepted it.
        """
        check_user(user)
        decoded = wire.decode(frame, self._basis.size, self._basis.digest)
        if decoded.sequence is None:
            raise FrameError(
                "a raw payload has no sequence: store a frame (`MicroVector.to_bytes` makes one)"
            )
        with self._transaction() as writer:
            before = self.get(user)
            if before is None:
                deleted = Accepted(self.last(user))
                deleted.check(Accepted(decoded.sequence), (self._basis.digest, "", user))
            elif before.frame != frame:
                self._accept(before, policy)
            with policy.admit(frame, self._basis, stream=user):
                pass
            now = time.time()
            writer.execute(
                "INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "frame = excluded.frame, sequence = excluded.sequence, changed = excluded.changed",
                (self._basis_id, user, frame, decoded.sequence, now, now),
            )
            stored = self.get(user)
        assert stored is not None
        return stored

    def delete(self, user: str) -> bool:
        """Remove a user's vector, and remember its sequence; see `Store`."""
        with self._transaction() as writer:
            done = writer.execute(
                "UPDATE vectors SET frame = NULL, changed = ? "
                "WHERE basis = ? AND user = ? AND frame IS NOT NULL",
                (time.time(), self._basis_id, check_user(user)),
            )
            return done.rowcount > 0

    def users(self, after: str = "") -> Iterator[Stored]:
        """Yield the vectors of all users; see `Store`."""
        while True:
            rows = self._read(
                "SELECT user, frame, sequence, made, changed FROM vectors WHERE basis = ? AND user > ? "
                "ORDER BY user LIMIT ?",
                (self._basis_id, after, _PAGE),
            )
            if not rows:
                return
            yield from (Stored(*row) for row in rows if row[1] is not None)
            after = rows[-1][0]

    def import_frames(self, frames: Iterable[tuple[str, bytes]]) -> Imported:
        """Store the vectors of many users.

        Frames are looked at and not verified: they are of this basis and whole, and a checksum is right.
        Whether one is applied is decided at each request, as ever. A lower sequence than a user's last one
        is refused.

        Args:
            frames: user and frame of each.

        Raises:
            VectorError: a frame is of another basis, or damaged. Up to some thousand frames before it are not
                stored either.
            StoreError: the store cannot be written.
        """
        counts = [0, 0, 0, 0]
        rest = iter(frames)
        while batch := list(islice(rest, _BATCH)):
            rows = [(check_user(user), data, self._look_at(user, data)) for user, data in batch]
            with self._transaction() as writer:
                self._import(writer, rows, counts)
        return Imported(*counts)

    def close(self) -> None:
        """Close the file. Again is fine."""
        self._closed = True
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def _import(
        self, writer: sqlite3.Connection, rows: list[tuple[str, bytes, int]], counts: list[int]
    ) -> None:
        there: dict[str, tuple[int, bytes | None]] = {}
        names = list({user for user, _, _ in rows})
        for user, sequence, frame in writer.execute(
            "SELECT user, sequence, frame FROM vectors WHERE basis = ? AND user IN "
            f"({','.join('?' * len(names))})",
            (self._basis_id, *names),
        ):
            there[user] = sequence, frame
        fresh: dict[str, tuple[bytes, int]] = {}
        for user, frame, sequence in rows:
            before = there.get(user)
            if before is None or sequence > before[0]:
                counts[0 if before is None or before[1] is None else 1] += 1
                fresh[user] = frame, sequence
                there[user] = sequence, frame
            else:
                counts[2 if (sequence, frame) == before else 3] += 1
        now = time.time()
        writer.executemany(
            "INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "frame = excluded.frame, sequence = excluded.sequence, changed = excluded.changed",
            ((self._basis_id, user, frame, sequence, now, now) for user, (frame, sequence) in fresh.items()),
        )

    def _look_at(self, user: str, data: bytes) -> int:
        """Return the sequence of a frame that is whole."""
        # A million of them: what has a MAC or a signature is not taken apart, which requests do.
        if self._lengths.get(data[:1]) == len(data) and data[1:5] == self._digest[:4]:
            return wire.sequence_of(data)
        try:
            decoded = wire.decode(data, self._basis.size, self._basis.digest)
        except VectorError as error:
            raise type(error)(f"user {user!r}: {error}") from None
        if decoded.sequence is None:
            raise FrameError(f"user {user!r}: a raw payload has no sequence, so it cannot be stored")
        message = wire.message(decoded.version, user, self._digest, decoded.body)
        if decoded.kind == tags.CRC32 and not _CRC32.verify(message, decoded.tag):
            raise ChecksumError(
                f"user {user!r}: the frame's checksum does not match: it was damaged, or is another user's"
            )
        return decoded.sequence

    def _accept(self, before: Stored, policy: Policy) -> None:
        """Count an imported vector as accepted, if it would have been."""
        try:
            with policy.admit(before.frame, self._basis, stream=before.user):
                pass
        except VectorError:
            return

    # Connections

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
        tables = self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not found and not tables:
            self._write_ahead()
            with self._transaction() as writer:
                if not writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # another process
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
            raise unreadable(self.path, error) from None


class _StoreMarks(Marks):
    """What was accepted of each user, in the store's file: a policy that is made with it keeps it there."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__()
        self._store = store

    def __repr__(self) -> str:
        return f"StoreMarks({str(self._store.path)!r})"

    def record(self, mark: Mark, sequence: int, content: str = "") -> None:
        """Raise a mark to a sequence, durably; what is there already writes nothing.

        Raises:
            RollbackError: as for `check`, also where another thread or process recorded it meanwhile.
            StoreError: the file cannot be written.
        """
        accepted = Accepted(sequence, content)
        if self._settled(mark, accepted):
            return
        with self._store._transaction() as writer:
            if not self._settled(mark, accepted):
                writer.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?, ?)", (*mark, *accepted))

    def _settled(self, mark: Mark, accepted: Accepted) -> bool:
        found = self._find(mark)
        found.check(accepted, mark)
        return found == accepted or (found.sequence == accepted.sequence and not accepted.content)

    def _find(self, mark: Mark) -> Accepted:
        rows = self._store._read(
            "SELECT sequence, content FROM marks WHERE digest = ? AND key = ? AND stream = ?", mark
        )
        return Accepted(*rows[0]) if rows else Accepted()
