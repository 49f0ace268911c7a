"""The databases of a store: an SQLite file, and PostgreSQL. Both run the same statements, SQLite's."""

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

_BUSY_S = 10.0
_CONNECTIONS = 8  # of a server to PostgreSQL, made as they are needed
_CONNECT_S = 2.0  # most that a request waits for a connection
_WAITS = {  # in which a server is noticed that is gone, and a transaction ended whose client hangs
    "connect_timeout": 2,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "options": "-c statement_timeout=30s -c idle_in_transaction_session_timeout=30s",
}
_AGAIN_S = 1.0  # after which a database that could not be reached is tried again, by one request

T = TypeVar("T")


def open_database(where: str | PathLike[str]) -> SQLite | Postgres:
    """Open the file, or the database at `postgresql://...`. Errors: those of `Store`."""
    is_address = str(where).startswith(("postgresql://", "postgres://"))
    return Postgres(str(where)) if is_address else SQLite(Path(where))


class Session:
    """A transaction, or a query by itself, of either database."""

    def __init__(self, connection: Any, *, postgres: bool) -> None:
        self._connection, self._postgres = connection, postgres

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run a statement, and return its rows."""
        if not self._postgres:
            return list(self._connection.execute(statement, values))
        cursor = self._connection.execute(_of_postgres(statement), values, binary=True)
        return cursor.fetchall() if cursor.description else []

    def each(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Run a statement for each of some rows, and return whether it changed something."""
        if not self._postgres:
            return [self._connection.execute(statement, row).fetchone() is not None for row in rows]
        if not rows:
            return []
        with self._connection.cursor() as cursor:
            cursor.executemany(_of_postgres(statement), rows, returning=True)
            return [each.rowcount > 0 for each in cursor.results()]

    def version(self, name: str) -> int:
        """Return the version of the tables, 0 before there are any, and keep others from making them."""
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
    """A file, with one connection of this process."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} does not exist: make this directory for the store")
        self._lock = threading.RLock()
        with self._turn():
            # Nothing but SQLite ever opens the file: who closes another descriptor of it drops all locks of
            # this process on it, and the next process to leave the store would unlink the log in use.
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
        """Return what some work in a transaction returns; `first`: it makes the tables."""
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
            with suppress(StoreError):  # another process has it open, and does so or did
                self.read("PRAGMA journal_mode = WAL")  # readers and a writer get on side by side
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

    Where it cannot be reached, requests are refused at once, but for one each second that tries again.
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
            psycopg.connect(address, **options).close()  # whose error says why, as the pool's do not
        except psycopg.Error as error:
            raise self._unusable(error) from None
        self._pool = psycopg_pool.ConnectionPool(
            address,
            kwargs={"autocommit": True, **options},
            min_size=1,
            max_size=_CONNECTIONS,
            timeout=_CONNECT_S,
            reconnect_timeout=_AGAIN_S,
            open=True,
        )
        self._lock, self._broken, self._again = threading.Lock(), False, 0.0

    def read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self._run(lambda connection: Session(connection, postgres=True).execute(query, values))

    def write(self, work: Callable[[Session], T], *, first: bool = False) -> T:
        """Return what some work in a transaction returns. It may run twice: it changes nothing again."""

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
                fatal = error.diag.severity_nonlocalized in ("FATAL", "PANIC")  # the last words of a server
                gone = connection is None or connection.closed or fatal
                if gone and connection is not None and not last:  # by a restart: so are its idle ones
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
    """Return a statement as PostgreSQL and psycopg take it."""
    typed = statement.replace(" BLOB ", " BYTEA ").replace(" TEXT ", ' TEXT COLLATE "C" ')
    return typed.replace("?", "%s")
