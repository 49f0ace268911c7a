"""The store of users' vectors, for one server or many: an SQLite file, or a PostgreSQL database.

A sequence is raised by one conditional statement, so that servers need no lock between them: the later of two
writers sees what the earlier one wrote.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import PathLike
from typing import Any, NamedTuple, TypeVar

from ..basis import Bases
from ..errors import RequestError, StoreError, TinyLoraError, VectorError
from ..process import cores
from ..vector import AdmittedVector, Policy
from ..wire.frame import DEFAULT_USER, RULE, is_portable
from ..wire.sequences import Accepted, SequenceLog, Source
from .database import Session, open_database

# The n-th migration makes the tables of version n of those of version n - 1. The types are SQLite's.
_MIGRATIONS = (
    """
    CREATE TABLE tinylora_factors (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE);
    CREATE TABLE tinylora_marks (
        factors INTEGER NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL,
        sequence INTEGER NOT NULL, content TEXT NOT NULL, PRIMARY KEY (factors, name, key)
    );
    CREATE TABLE tinylora_vectors (
        factors INTEGER NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, sequence INTEGER NOT NULL,
        digest TEXT NOT NULL, frame BLOB NOT NULL, PRIMARY KEY (factors, name)
    );
    CREATE TABLE tinylora_clicks (
        factors INTEGER NOT NULL, name TEXT NOT NULL, basis TEXT NOT NULL, revision INTEGER NOT NULL,
        state BLOB NOT NULL, PRIMARY KEY (factors, name)
    );
    CREATE TABLE tinylora_answers (
        factors INTEGER NOT NULL, id TEXT NOT NULL, account TEXT NOT NULL, name TEXT NOT NULL,
        made BIGINT NOT NULL, answer BLOB NOT NULL, PRIMARY KEY (factors, id)
    );
    CREATE INDEX tinylora_answers_of ON tinylora_answers (factors, name, account, made);
    CREATE INDEX tinylora_answers_made ON tinylora_answers (made);
    """,
)
_VERSION = len(_MIGRATIONS)
_RAISE = """
    INSERT INTO tinylora_marks AS mark VALUES (?, ?, ?, ?, ?) ON CONFLICT (factors, name, key) DO UPDATE SET
        sequence = excluded.sequence,
        content = CASE WHEN excluded.content = '' AND excluded.sequence = mark.sequence
            THEN mark.content ELSE excluded.content END
    WHERE excluded.sequence > mark.sequence OR excluded.sequence = mark.sequence AND ?
        AND (mark.content = '' OR excluded.content IN ('', mark.content))
    RETURNING 1
"""  # `Accepted.check` has the same rule. The last value says whether an equal sequence is accepted
_HIGHEST = "SELECT max(sequence) FROM tinylora_marks WHERE factors = ? AND name = ?"
_MARK = "SELECT sequence, content FROM tinylora_marks WHERE factors = ? AND name = ? AND key = ?"
_OTHER = """
    factors = ? AND name = ? AND NOT EXISTS
        (SELECT 1 FROM tinylora_vectors WHERE factors = ? AND name = ? AND digest = ?)
"""  # answers and clicks belong to the stored vector: they go when it is replaced by another one
_PUT = """
    INSERT INTO tinylora_vectors VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (factors, name) DO UPDATE SET
        key = excluded.key, sequence = excluded.sequence, digest = excluded.digest, frame = excluded.frame
"""
_VECTOR = """
    SELECT vector.digest, mark.sequence, mark.content,
        CASE WHEN vector.digest = ? THEN NULL ELSE vector.frame END
    FROM tinylora_vectors AS vector JOIN tinylora_marks AS mark
        ON mark.factors = vector.factors AND mark.name = vector.name AND mark.key = vector.key
    WHERE vector.factors = ? AND vector.name = ?
"""

_CLICKED = """
    INSERT INTO tinylora_clicks AS old VALUES (?, ?, ?, ?, ?) ON CONFLICT (factors, name) DO UPDATE SET
        basis = excluded.basis, revision = excluded.revision, state = excluded.state
    WHERE old.revision = excluded.revision - 1 RETURNING 1
"""
_LEARNED = """
    SELECT 1 FROM tinylora_clicks WHERE factors = ? AND name = ? AND basis = ? AND revision = ? AND state = ?
        AND NOT EXISTS (SELECT 1 FROM tinylora_answers WHERE factors = ? AND id = ?)
"""  # two equal clicks on two answers make one state: which of them was learned the answers tell
_TOO_MANY = """
    DELETE FROM tinylora_answers WHERE factors = ? AND name = ? AND account = ? AND made <=
        (SELECT made FROM tinylora_answers WHERE factors = ? AND name = ? AND account = ?
        ORDER BY made DESC LIMIT 1 OFFSET ?)
"""

_WAITING, _WAITING_S = 64, 86_400  # answers of an account and user that wait for a click, and for how long
_AT_ONCE = 256  # vectors that `put_many` stores in a transaction
_KEPT_BYTES = 1 << 26  # memory for the R of vectors that were used last

T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """A user's vector: a frame, which a policy checks before each use, and the frame's sequence."""

    user: str
    frame: bytes
    sequence: int


class Listed(NamedTuple):
    """A stored vector as lists describe it."""

    user: str
    sequence: int
    bytes: int


class _Checked(NamedTuple):
    """A frame that a policy allows, to be stored unless a later one was."""

    stored: Stored
    source: Source
    accepted: Accepted


def is_user(name: str) -> bool:
    """Tell whether a user may have this name."""
    return is_portable(name) and name != DEFAULT_USER


def check_user(name: str) -> str:
    """Return a user's name. RequestError: no user may have it."""
    if not is_user(name):
        raise RequestError(
            f"{name[:80]!r} is not a valid user: {RULE}, and not {DEFAULT_USER!r}", param="user"
        )
    return name


class Store:
    """Users' vectors of one model's factors, which threads, processes and, in PostgreSQL, machines may share.

    A user has one vector, of any size: a newer one of 840 numbers replaces an older one of 13. Its sequence
    is recorded in the same transaction; a policy with `state=store.sequences` records those that it accepts.

    Args:
        where: an SQLite file, made where it does not exist, or `postgresql://...` (extra `postgres`), whose
            tables are made where they do not exist.

    FileNotFoundError: the file's directory does not exist.
    StoreError: the file is damaged, or no store; of methods, it cannot be used, or not be reached.
    """

    def __init__(self, where: str | PathLike[str], bases: Bases) -> None:
        self._bases = bases
        self._database = open_database(where)
        # By user, the one used last at the end: policy that checked the vector, frame's digest, vector.
        self._kept = OrderedDict[str, tuple[Policy, str, AdmittedVector]]()
        self._lock, self._swept, self._kept_bytes = threading.Lock(), 0, 0
        try:
            self._factors = self._database.write(self._set_up, first=True)
        except BaseException:
            self._database.close()
            raise
        self.sequences: SequenceLog = _StoreLog(self)

    def get(self, user: str) -> Stored | None:
        """Return a user's vector; None where they have none."""
        query = "SELECT frame, sequence FROM tinylora_vectors WHERE factors = ? AND name = ?"
        rows = self._database.read(query, (self._factors, check_user(user)))
        return Stored(user, *rows[0]) if rows else None

    def admitted(self, user: str, policy: Policy) -> AdmittedVector | None:
        """Return a user's vector as `policy.check` does; None where they have none.

        The frame is read and checked only if another one was stored since the last call; else the store is
        asked for its digest and the sequence alone. The caller checks the last day (`Policy.own` does).
        VectorError: the policy refuses it.
        """
        with self._lock:
            of, digest, vector = self._kept.get(user, (policy, "", None))
        if of is not policy:
            digest = ""
        rows = self._database.read(_VECTOR, (digest, self._factors, check_user(user)))
        with self._lock:
            if not rows:
                self._forget(user)
                return None
            ((now, sequence, content, frame),) = rows
        if frame is not None:
            vector = policy.verified(frame, self._bases, user=user)
        assert vector is not None
        source, accepted = vector.mark
        Accepted(sequence, content).check(accepted, source)
        with self._lock:
            self._forget(user)
            self._kept[user] = policy, now, vector
            self._kept_bytes += vector.r.nbytes
            while self._kept_bytes > _KEPT_BYTES:
                self._forget(next(iter(self._kept)))
        return vector

    def listed(self, after: str = "", most: int = 1000) -> list[Listed]:
        """Return the stored vectors by name: those behind the name `after`, at most `most` of them."""
        query = "SELECT name, sequence, length(frame) FROM tinylora_vectors WHERE factors = ? AND name > ?"
        rows = self._database.read(f"{query} ORDER BY name LIMIT ?", (self._factors, after, most))
        return [Listed(*row) for row in rows]

    def put(self, user: str, frame: bytes, policy: Policy) -> Stored:
        """Store a user's vector in place of the one before, whose answers and clicks are removed.

        VectorError: the policy refuses it. RequestError: no user may have this name.
        """
        checked = self._checked(user, frame, policy)
        (found,) = self._database.write(lambda session: self._put(session, [checked]))
        if isinstance(found, TinyLoraError):
            raise found
        return found

    def last(self, user: str) -> int | None:
        """Return the highest sequence that was accepted of a user, under any key; None where none was."""
        ((sequence,),) = self._database.read(_HIGHEST, (self._factors, check_user(user)))
        return None if sequence is None else int(sequence)

    def put_newer(self, user: str, frame: bytes, policy: Policy) -> bool:
        """Store a user's vector as `put` does if its sequence is above all that were accepted; return whether
        it is stored. With a sequence of `last` + 1, nothing that came meanwhile is replaced."""
        checked = self._checked(user, frame, policy)

        def put(session: Session) -> bool:
            ((highest,),) = session.execute(_HIGHEST, (self._factors, user))
            newer = checked.stored.sequence > (-1 if highest is None else highest)
            row = self._row(checked.source, checked.accepted, again=False)
            if newer and session.execute(_RAISE, row):
                self._put(session, [checked])
                return True
            there = "SELECT 1 FROM tinylora_vectors WHERE factors = ? AND name = ? AND digest = ?"
            return bool(session.execute(there, (self._factors, user, _digest(frame))))  # if this ran before

        return self._database.write(put)

    def put_many(
        self, frames: Iterable[tuple[str, bytes]], policy: Policy
    ) -> Iterator[tuple[str, Stored | TinyLoraError]]:
        """Store the vectors of many users as `put` does; yield each one in order, or why it was refused.

        A vector is stored when it is yielded: each transaction has some hundred. They are checked on all
        cores while those before them are written.
        """
        with ThreadPoolExecutor(cores()) as threads:
            rest, before = iter(frames), list[Future[tuple[str, _Checked | TinyLoraError]]]()

            def check(each: tuple[str, bytes]) -> tuple[str, _Checked | TinyLoraError]:
                try:
                    return each[0], self._checked(*each, policy)
                except (VectorError, RequestError) as error:
                    return each[0], error

            while True:
                begun = [threads.submit(check, each) for each in islice(rest, _AT_ONCE)]
                found = [each.result() for each in before]
                put = partial(self._put, checked=[each for _, each in found if isinstance(each, _Checked)])
                done = iter(self._database.write(put))
                for user, each in found:
                    yield user, next(done) if isinstance(each, _Checked) else each
                if not begun:
                    return
                before = begun

    def delete(self, user: str) -> bool:
        """Remove a user's vector, answers and clicks, but not their sequences; return whether there was a
        vector."""

        there = False

        def delete(session: Session) -> bool:
            nonlocal there  # if this ran before, it may be that run which deleted
            of, whose = "factors = ? AND name = ?", (self._factors, check_user(user))
            for table in ("answers", "clicks"):
                session.execute(f"DELETE FROM tinylora_{table} WHERE {of}", whose)
            there |= bool(session.execute(f"DELETE FROM tinylora_vectors WHERE {of} RETURNING 1", whose))
            return there

        return self._database.write(delete)

    def remember(self, answer: str, account: str, user: str, content: bytes) -> None:
        """Keep an answer, by its id, until it is clicked on, for a day at most; the oldest of too many go."""
        whose, now = (self._factors, user, account), time.time_ns() // 1000

        def remember(session: Session) -> None:
            session.execute(
                "INSERT INTO tinylora_answers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (self._factors, answer, account, user, now, content),
            )
            session.execute(_TOO_MANY, (*whose, *whose, _WAITING))

        self._database.write(remember)
        if now - self._swept > 1e6 * _WAITING_S / 24:
            self._swept = now
            old = (now - 1_000_000 * _WAITING_S,)
            self._database.write(
                lambda session: session.execute("DELETE FROM tinylora_answers WHERE made < ?", old)
            )

    def answers(self, names: Sequence[str]) -> dict[str, tuple[str, str, bytes]]:
        """Return the waiting answers that have one of some ids, by id: account, user and content."""
        query = "SELECT account, name, answer FROM tinylora_answers WHERE factors = ? AND id = ?"
        found = {name: self._database.read(query, (self._factors, name)) for name in names}
        return {name: rows[0] for name, rows in found.items() if rows}

    def clicks(self, user: str, basis: str) -> tuple[int, bytes | None]:
        """Return the revision of a user's clicks, 0 without any, and their state if it is of this basis."""
        query = "SELECT revision, state, basis FROM tinylora_clicks WHERE factors = ? AND name = ?"
        rows = self._database.read(query, (self._factors, check_user(user)))
        if not rows:
            return 0, None
        ((revision, state, of),) = rows
        return revision, state if of == basis else None

    def learned(
        self, user: str, frame: bytes, policy: Policy, answers: Sequence[str], clicks: tuple[int, str, bytes]
    ) -> Stored | None:
        """Store a vector that was learned from a click, and remove the answers that the click was on.

        Args:
            clicks: the revision that was read; the basis and the state of the next one.

        Returns None, and nothing is stored, where an answer waits no longer or the revision is another one by
        now: to put or delete a vector removes its answers. VectorError: the policy refuses the frame.
        """
        stored, source, accepted = self._checked(user, frame, policy)
        whose, (revision, basis, state) = (self._factors, user), clicks
        clicked = (*whose, basis, revision + 1, state)

        def learn(session: Session) -> bool:
            if session.execute(_LEARNED, (*clicked, self._factors, min(answers))):  # if this ran before
                return True
            steps = [(_RAISE, self._row(source, accepted))]
            for answer in sorted(answers):
                taken = "DELETE FROM tinylora_answers WHERE factors = ? AND id = ? RETURNING 1"
                steps.append((taken, (self._factors, answer)))
            steps.append((_CLICKED, clicked))
            if not all(session.execute(*step) for step in steps):
                raise _ChangedError
            session.execute(_PUT, (*whose, source[1], stored.sequence, _digest(frame), frame))
            return True

        try:
            self._database.write(learn)
        except _ChangedError:
            return None
        return stored

    def close(self) -> None:
        """Close the file, or the connections. Again is fine."""
        self._database.close()

    def _checked(self, user: str, frame: bytes, policy: Policy) -> _Checked:
        vector = policy.verified(frame, self._bases, user=check_user(user))
        return _Checked(Stored(user, frame, vector.sequence), *vector.mark)

    def _put(self, session: Session, checked: Sequence[_Checked]) -> list[Stored | TinyLoraError]:
        """Store vectors, in the order of users' names, so that two such transactions cannot deadlock."""
        order = sorted(range(len(checked)), key=lambda at: checked[at].stored.user)
        raised = session.each(_RAISE, [self._row(*checked[at][1:]) for at in order])
        found: dict[int, Stored | TinyLoraError] = {}
        others, rows = [], []
        for at, may in zip(order, raised, strict=True):
            stored, source, accepted = checked[at]
            found[at] = stored
            if may:
                whose, digest = (self._factors, stored.user), _digest(stored.frame)
                others.append((*whose, *whose, digest))
                rows.append((*whose, source[1], stored.sequence, digest, stored.frame))
                continue
            try:
                self._accepted(session.execute(_MARK, self._whose(source))).check(accepted, source)
            except VectorError as error:
                found[at] = error
        for table in ("answers", "clicks"):
            session.each(f"DELETE FROM tinylora_{table} WHERE {_OTHER}", others)
        session.each(_PUT, rows)
        return [found[at] for at in range(len(checked))]

    def _row(self, source: Source, accepted: Accepted, *, again: bool = True) -> tuple[Any, ...]:
        """Return the values of `_RAISE`; `again`: an equal sequence is accepted."""
        return *self._whose(source), *accepted, again

    def _forget(self, user: str) -> None:
        if (kept := self._kept.pop(user, None)) is not None:
            self._kept_bytes -= kept[2].r.nbytes

    def _whose(self, source: Source) -> tuple[Any, ...]:
        """Return the key of a source's row of marks. StoreError: it is of another model."""
        digest, key, user = source
        if digest != self._bases.factors.digest:
            raise StoreError(f"the store is of factors {self._bases.id}, and not of {digest[:8]}")
        return self._factors, user, key

    @staticmethod
    def _accepted(rows: list[tuple[Any, ...]]) -> Accepted:
        return Accepted(*rows[0]) if rows else Accepted()

    def _set_up(self, session: Session) -> int:
        """Make the tables, or migrate them to this version; return the number of the factors in them."""
        version = session.version(self._database.name)
        if version > _VERSION:
            raise StoreError(
                f"{self._database.name} has version {version}, but this release reads {_VERSION} at most: "
                "update it, or name another store"
            )
        for script in _MIGRATIONS[version:]:
            for statement in filter(str.strip, script.split(";")):
                session.execute(statement)
        if version < _VERSION:
            session.execute("DELETE FROM tinylora_store")
            session.execute("INSERT INTO tinylora_store VALUES (?)", (_VERSION,))
        digest = (self._bases.factors.digest,)
        session.execute(
            "INSERT INTO tinylora_factors SELECT 1 + coalesce(max(id), 0), ? FROM tinylora_factors "
            "WHERE true ON CONFLICT DO NOTHING",
            digest,
        )
        ((number,),) = session.execute("SELECT id FROM tinylora_factors WHERE digest = ?", digest)
        return int(number)


class _ChangedError(Exception):
    """What a click was learned from has changed: the transaction is rolled back."""


def _digest(frame: bytes) -> str:
    return hashlib.sha256(frame).hexdigest()[:32]


class _StoreLog(SequenceLog):
    """The sequences that a policy accepted, kept in a store."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def store(self, source: Source, accepted: Accepted) -> None:
        """Write what was accepted, in one statement. RollbackError: it must not be accepted any more."""
        row = self._store._row(source, accepted)
        if not self._store._database.write(lambda session: session.execute(_RAISE, row)):
            self.find(source).check(accepted, source)

    def find(self, source: Source) -> Accepted:
        return self._store._accepted(self._store._database.read(_MARK, self._store._whose(source)))
