"""The store in an SQLite file: what is put is there, and nothing older comes back, whoever asks."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import support

from tinylora_edge import (
    Basis,
    BasisMismatchError,
    FrameError,
    Hmac,
    MicroVector,
    Policy,
    RequestError,
    RollbackError,
    SignatureError,
    StoreError,
    VectorError,
    save_basis,
)
from tinylora_edge.serve.store import SqliteStore

KEY = Hmac(bytes(range(32)))
NEXT_KEY = Hmac(bytes(range(1, 33)))


@pytest.fixture(scope="module")
def basis() -> Basis:
    return support.random_basis()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.db"


@pytest.fixture
def store(path: Path, basis: Basis) -> SqliteStore:
    return SqliteStore(path, basis)


def framed(basis: Basis, sequence: int, *, value: float = 0.5, key: Hmac | None = KEY) -> bytes:
    vector = MicroVector(np.full((basis.groups, basis.u), value, np.float32), sequence=sequence)
    return vector.to_bytes(basis, tag=key or "crc32", version=1)


def policy(store: SqliteStore, *keys: Hmac) -> Policy:
    return Policy(keys=keys or [KEY], state=store.marks)


def test_what_is_put_is_there(store: SqliteStore, path: Path, basis: Basis) -> None:
    assert store.get("alice") is None
    first = store.put("alice", framed(basis, 1), policy(store))
    second = store.put("alice", framed(basis, 2), policy(store))
    assert store.get("alice") == second
    assert (second.frame, second.sequence) == (framed(basis, 2), 2)
    assert first.made == second.made <= second.changed
    assert store.get("bob") is None
    store.close()
    again = SqliteStore(path, basis)
    assert again.get("alice") == second
    assert path.stat().st_mode & 0o077 == 0


def test_nothing_older_comes_back(store: SqliteStore, path: Path, basis: Basis) -> None:
    store.put("alice", framed(basis, 5), policy(store))
    for _ in range(2):
        with pytest.raises(RollbackError, match="sequence 4, but 5 was already accepted"):
            store.put("alice", framed(basis, 4), policy(store))
        with pytest.raises(RollbackError, match="another vector with this sequence"):
            store.put("alice", framed(basis, 5, value=0.25), policy(store))
        with pytest.raises(RollbackError):  # a request's own vector, not from the store
            policy(store).check(framed(basis, 4), basis, stream="alice")
        store.close()
        store = SqliteStore(path, basis)
    assert store.delete("alice")
    assert not store.delete("alice")
    assert store.get("alice") is None
    with pytest.raises(RollbackError):
        store.put("alice", framed(basis, 4), policy(store))
    assert store.put("bob", framed(basis, 4), policy(store)).sequence == 4


def test_another_key_begins_anew_and_the_old_one_goes_on(store: SqliteStore, basis: Basis) -> None:
    store.put("alice", framed(basis, 5), policy(store))
    both = policy(store, KEY, NEXT_KEY)
    assert store.put("alice", framed(basis, 1, key=NEXT_KEY), both).sequence == 1
    with pytest.raises(RollbackError):
        store.put("alice", framed(basis, 4), both)


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (lambda basis: framed(basis, 9, key=NEXT_KEY), SignatureError),
        (lambda basis: framed(basis, 9, key=None), SignatureError),
        (lambda basis: framed(basis, 9)[:-1], FrameError),
        (lambda basis: bytes(4 * basis.size), SignatureError),
        (lambda basis: framed(support.random_basis(rng=1), 9), BasisMismatchError),
    ],
)
def test_what_is_refused_changes_nothing(store: SqliteStore, basis: Basis, frame, error) -> None:
    before = store.put("alice", framed(basis, 1), policy(store))
    with pytest.raises(error):
        store.put("alice", frame(basis), policy(store))
    assert store.get("alice") == before
    assert store.put("alice", framed(basis, 2), policy(store)).sequence == 2


@pytest.mark.parametrize(
    "user", ["", "../x", "a/b", "a b", "x'; DROP TABLE vectors; --", "x" * 65, "ü", "a\n"]
)
def test_names_that_are_none(store: SqliteStore, basis: Basis, user: str) -> None:
    for call in (
        lambda: store.get(user),
        lambda: store.delete(user),
        lambda: store.put(user, framed(basis, 1), policy(store)),
    ):
        with pytest.raises(RequestError, match="no name of a user"):
            call()


def test_many_are_put_at_once_or_none(store: SqliteStore, basis: Basis) -> None:
    store.put("user7", framed(basis, 5), policy(store))
    for last in (framed(basis, 4), framed(basis, 6, key=NEXT_KEY), framed(basis, 6)[:-1]):
        frames = [("user1", framed(basis, 1)), ("user2", framed(basis, 1)), ("user7", last)]
        with pytest.raises(VectorError):
            store.put_many(frames, policy(store))
        assert store.get("user1") is None
    store.put_many(((f"user{number}", framed(basis, 6)) for number in range(2_000)), policy(store))
    for user in ("user7", "user1999"):
        found = store.get(user)
        assert found is not None
        assert found.sequence == 6


def test_a_policy_with_a_memory_of_its_own(store: SqliteStore, basis: Basis) -> None:
    """What is stored counts for every policy, whichever key it has."""
    store.put("alice", framed(basis, 5), policy(store))
    with pytest.raises(RollbackError):
        store.put("alice", framed(basis, 4), Policy(keys=[KEY]))
    store.delete("alice")
    with pytest.raises(RollbackError):
        store.put("alice", framed(basis, 4), Policy(keys=[KEY]))


def test_two_processes_never_go_back(path: Path, basis: Basis, tmp_path: Path) -> None:
    """Each puts rising sequences of one user as fast as it can; whatever is there after a put only rises."""
    save_basis(basis, tmp_path / "basis.gguf")
    code = """
import sys
from tinylora_edge import *
from tinylora_edge.serve.store import SqliteStore
path, basis, first = sys.argv[1], load_basis(sys.argv[2]), int(sys.argv[3])
store, key, highest, put, refused = SqliteStore(path, basis), Hmac(bytes(range(32))), 0, 0, 0
policy = Policy(keys=[key], state=store.marks)
for sequence in range(first, 200, 2):
    try:
        vector = MicroVector([[float(sequence)] * basis.u] * basis.groups, sequence=sequence)
        store.put("alice", vector.to_bytes(basis, tag=key, stream="alice"), policy)
        put += 1
    except RollbackError:
        refused += 1
    found = store.get("alice").sequence
    assert found >= max(highest, sequence), (found, highest, sequence)
    highest = found
print(put, refused)
"""
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "basis.gguf")]
    running = [
        subprocess.Popen([*command, first], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for first in ("1", "2")
    ]
    done = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], done
    counts = [[int(count) for count in out.split()] for out, _ in done]
    assert [sum(each) for each in counts] == [100, 99]
    stored = SqliteStore(path, basis).get("alice")
    assert stored is not None
    assert stored.sequence == 199


@pytest.mark.parametrize("end", ["kill", "close"])
def test_what_was_acknowledged_outlives_a_process_that_leaves(
    path: Path, basis: Basis, tmp_path: Path, end: str
) -> None:
    """One process puts; another opens the store and leaves; the first goes on, and is killed or closes."""
    save_basis(basis, tmp_path / "basis.gguf")
    code = """
import sys
from tinylora_edge import *
from tinylora_edge.serve.store import SqliteStore
basis, key = load_basis(sys.argv[2]), Hmac(bytes(range(32)))
store = SqliteStore(sys.argv[1], basis)
policy = Policy(keys=[key], state=store.marks)
for line in sys.stdin:
    sequence = int(line)
    for user in ("alice", f"user{sequence}"):
        vector = MicroVector([[1.0] * basis.u] * basis.groups, sequence=sequence)
        store.put(user, vector.to_bytes(basis, tag=key, stream=user), policy)
    print(store.get("alice").sequence, flush=True)
store.close()
"""
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "basis.gguf")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin is not None
        assert first.stdout is not None

        def put(sequences: range) -> None:
            for sequence in sequences:
                print(sequence, file=first.stdin, flush=True)
                assert first.stdout.readline() == f"{sequence}\n"

        put(range(1, 6))
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True, timeout=60)
        put(range(6, 14))
        if end == "kill":
            first.kill()
        first.stdin.close()
        first.wait(60)
    store = SqliteStore(path, basis)
    found = store.get("alice")
    assert found is not None
    assert found.sequence == 13
    assert all(store.get(f"user{sequence}") for sequence in range(1, 14))
    with pytest.raises(RollbackError):
        store.put("alice", framed(basis, 5), policy(store))


def test_threads_share_a_store(store: SqliteStore, basis: Basis) -> None:
    def put(number: int) -> int:
        store.put(
            f"user{number % 7}", framed(basis, number // 7 + 1), Policy("none", state=store.marks, keys=[KEY])
        )
        found = store.get(f"user{number % 7}")
        return found.sequence if found else 0

    with ThreadPoolExecutor(4) as threads:
        for round_ in range(6):
            found = list(threads.map(put, range(round_ * 7, round_ * 7 + 7)))
            assert found == [round_ + 1] * 7


def test_a_file_that_is_no_store(tmp_path: Path, basis: Basis) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"damaged.db cannot be used: file is not a database"):
        SqliteStore(damaged, basis)
    assert damaged.read_bytes() == b"no database at all" * 100
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (a)")
    with pytest.raises(StoreError, match="no store of users' vectors"):
        SqliteStore(other, basis)
    with pytest.raises(StoreError, match="cannot be used"):
        SqliteStore(tmp_path, basis)
    with pytest.raises(FileNotFoundError, match="make it"):
        SqliteStore(tmp_path / "none" / "users.db", basis)
    later = tmp_path / "later.db"
    SqliteStore(later, basis).close()
    with sqlite3.connect(later) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match="version 7, but this release reads version 1"):
        SqliteStore(later, basis)


def test_a_store_that_is_damaged_while_it_is_open(store: SqliteStore, path: Path, basis: Basis) -> None:
    store.put_many([(f"user{i}", framed(basis, 1)) for i in range(2000)], policy(store))
    store.close()
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="malformed"):
        SqliteStore(path, basis).get("user7")


def test_a_full_disk(store: SqliteStore, basis: Basis) -> None:
    store.put("alice", framed(basis, 1), policy(store))
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        store.put_many([(f"user{i}", framed(basis, 1)) for i in range(2000)], policy(store))
    assert store.get("user0") is None
    store._writer.execute("PRAGMA max_page_count = 1000000")
    assert store.put("alice", framed(basis, 2), policy(store)).sequence == 2


def test_bases_share_a_file(store: SqliteStore, path: Path, basis: Basis) -> None:
    other = support.random_basis(rng=1)
    second = SqliteStore(path, other)
    store.put("alice", framed(basis, 1), policy(store))
    second.put("alice", framed(other, 7), policy(second))
    found = [each.get("alice") for each in (store, second)]
    assert [entry and entry.sequence for entry in found] == [1, 7]


def test_a_closed_store(store: SqliteStore, basis: Basis) -> None:
    store.close()
    store.close()
    for call in (
        lambda: store.get("a"),
        lambda: store.put("a", framed(basis, 1), Policy()),
        lambda: store.delete("a"),
    ):
        with pytest.raises(StoreError, match="closed"):
            call()
