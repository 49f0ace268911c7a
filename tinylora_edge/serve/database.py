"""The databases of a store, an SQLite file and PostgreSQL. Both run the same statements, in SQLite's form."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..errors import MissingExtraError, StoreError

_BUSY_S = 10.0  # most that a statement waits for the lock of an SQLite file
_CONNECTIONS = 8  # most connections of a process to PostgreSQL, made as they are needed
_CONNECT_S = 2.0  # most that a request waits for a connection
_START_S = 10  # most that a connection takes to be made; a request does not wait so long for it
_WAITS = {  # time-outs: of a database that is gone, and of a transaction whose client hangs
    "connect_timeout": _START_S,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "options": "-c statement_timeout=30s -c idle_in_transaction_session_timeout=30s",
}
_AGAIN_S = 1.0  # after so long one request tries a database again that could not be reached

T = TypeVar("T")


def open_database(where: str | PathLike[str]) -> SQLite | Postgres:
    """Open the file, or the database at `postgresql://...`. Errors: those of `Store`."""
    is_address = str(where).startswith(("postgresql://", "postgres://"))
    return Postgres(str(where)) if is_address else SQLite(Path(where))


class Session:
    """Runs statements of a transaction, or a query without one, in either database."""

    def __init__(self, connection: Any, *, postgres: bool) -> None:
        self._connection, self._postgres = connection, postgres

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run a statement, and return its rows."""
        if not self._postgres:
            return list(self._connection.execute(statement, values))
        cursor = self._connection.execute(_of_postgres(statement), values, binary=True)
        return cursor.fetchall() if cursor.description else []

    def each(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Run a statement with each of some rows, and return for each whether it changed something."""
        if not self._postgres:
            return [self._connection.execute(statement, row).fetchone() is not None for row in rows]
        if not rows:
            return []
        with self._connection.cursor() as cursor:
            cursor.executemany(_of_postgres(statement), rows, returning=True)
            return [each.rowcount > 0 for each in cursor.results()]

    def version(self, name: str) -> int:
        """Return the version of the tables, 0 if there are none; until the transaction ends, no other process
        can make them."""
        if self._postgres:
            self.execute("SELECT pg_advisory_xact_lock(hashtext('tinylora_store'))")
        else:
            names = {name for (name,) in self.execute("SELECT name FROM sqlite_master")}
            if names and "tinylora_store" not in names:
                raise StoreError(f"{name} is an SQLite file, but not a store of vectors: name another file")
        self.execute("CREATE TABLE IF NOT EXISTS tinylora_store (version INTEGER NOT NULL)")
        rows = self.execute("SELECT version FROM tinylora_store")
        return int(rows[0][0]) if rows else 0


class SQLite:
    """A file, with one connection, which the threads of this process share."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} does not exist: make this directory for the store")
        self._lock = threading.RLock()
        with self._turn():
            # SQLite alone may open the file. To close any other descriptor of it would drop all locks that
            # this process has on it, and the next process to close the store would delete the log in use.
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
        self._session = Session(self._connection, postgres=False)
        try:
            self.read("PRAGMA synchronous = FULL")
            if path.is_file() and not path.stat().st_size:
                os.chmod(path, 0o600)  # vectors are personal
        except BaseException:
            self.close()
            raise

    def read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self._turn():
            return self._session.execute(query, values)

    def write(self, work: Callable[[Session], T], *, first: bool = False) -> T:
        """Do some work in a transaction, and return its result; `first`: it makes the tables."""
        with self._turn():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                done = work(self._session)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        if first:
            with suppress(StoreError):  # another process has the file open, and sets or has set the mode
                self.read("PRAGMA journal_mode = WAL")  # in which readers do not wait for a writer
        return done

    def close(self) -> None:
        """Close the file. Again is fine."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise StoreError(f"the store {self.name} cannot be used: {error}") from None


class Postgres:
    """A database, with connections that are made as they are needed.

    While it cannot be reached, requests are refused at once, but for one each second that tries again.
    """

    def __init__(self, address: str) -> None:
        try:
            import psycopg
            import psycopg_pool
        except ImportError:
            raise MissingExtraError("a store in PostgreSQL", "psycopg", "postgres") from None
        parts = urlsplit(address)
        self.name = f"{parts.hostname or ''}{parts.path}"  # without the password
        self._failures: Any = psycopg.Error
        try:
            given = psycopg.conninfo.conninfo_to_dict(address)
            options: dict[str, Any] = {name: value for name, value in _WAITS.items() if name not in given}
            psycopg.connect(address, **options).close()  # its error says why, which the pool's would not
            self._pool = psycopg_pool.ConnectionPool(
                address,
                kwargs={"autocommit": True, **options},
                min_size=1,
                max_size=_CONNECTIONS,
                timeout=_CONNECT_S,
                reconnect_timeout=_AGAIN_S,
                open=True,
            )
            self._pool.wait(_START_S)
        except psycopg.Error as error:
            raise self._unusable(error) from None
        self._lock, self._broken, self._again = threading.Lock(), False, 0.0

    def read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self._run(lambda connection: Session(connection, postgres=True).execute(query, values))

    def write(self, work: Callable[[Session], T], *, first: bool = False) -> T:
        """Do some work in a transaction, and return its result. The work may run again after its commit, the
        reply to which was lost: it must change nothing then, and return the same."""

        def write(connection: Any) -> T:
            with connection.transaction():
                return work(Session(connection, postgres=True))

        return self._run(write)

    def close(self) -> None:
        """Close the connections. Again is fine."""
        self._pool.close()

    def _run(self, work: Callable[[Any], T]) -> T:
        with self._lock:
            if self._broken:
                if time.monotonic() < self._again:
                    raise StoreError(f"the store {self.name} could not be reached, and is tried again soon")
                self._again = time.monotonic() + _CONNECT_S + _AGAIN_S  # this request tries
        for last in (False, True):
            connection = None
            try:
                with self._pool.connection() as connection:
                    done = work(connection)
                self._broken = False
                return done
            except self._failures as error:
                fatal = error.diag.severity_nonlocalized in ("FATAL", "PANIC")  # the server hangs up
                gone = connection is None or connection.closed or fatal
                if gone and connection is not None and not last:  # after a restart idle ones are gone too
                    self._pool.check()
                    continue
                with self._lock:
                    self._broken = gone
                    self._again = time.monotonic() + _AGAIN_S
                raise self._unusable(error) from None
        raise AssertionError

    def _unusable(self, error: BaseException) -> StoreError:
        return StoreError(f"the store {self.name} cannot be used: {' '.join(str(error).split())}")


def _of_postgres(statement: str) -> str:
    typed = statement.replace(" BLOB ", " BYTEA ").replace(" TEXT ", ' TEXT COLLATE "C" ')
    return typed.replace("?", "%s")
