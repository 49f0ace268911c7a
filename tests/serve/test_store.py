"""The store: what is put is there, and nothing older comes back, whoever asks."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import support

from tinylora_edge import Bases, Basis, Hmac, MicroVector, Policy
from tinylora_edge.errors import RollbackError, StoreError
from tinylora_edge.formats.side_tensors import save_bases
from tinylora_edge.serve.store import Store

KEY = Hmac(bytes(range(32)))


@pytest.fixture(scope="module")
def bases() -> Bases:
    return Bases(support.random_factors(blocks=70, rank=8))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.db"


@pytest.fixture
def store(path: Path, bases: Bases) -> Store:
    return Store(path, bases)


def framed(basis: Basis, sequence: int, user: str = "alice", *, value: float = 0.5) -> bytes:
    vector = MicroVector(basis.values(np.full(basis.size, value)), sequence=sequence)
    return vector.to_bytes(basis, tag=KEY, user=user)


def policy(store: Store) -> Policy:
    return Policy(keys=[KEY], state=store.sequences)


def test_what_is_put_is_there(store: Store, path: Path, bases: Bases, basis: Basis) -> None:
    assert store.get("alice") is None
    store.put("alice", framed(basis, 1), policy(store))
    second = store.put("alice", framed(basis, 2), policy(store))
    assert store.get("alice") == second
    assert (second.frame, second.sequence) == (framed(basis, 2), 2)
    assert store.get("bob") is None
    store.close()
    again = Store(path, bases)
    assert again.get("alice") == second
    assert path.stat().st_mode & 0o077 == 0


def test_nothing_older_comes_back(store: Store, path: Path, bases: Bases, basis: Basis) -> None:
    store.put("alice", framed(basis, 5), policy(store))
    for _ in range(2):
        with pytest.raises(RollbackError, match="sequence 4, but 5 was already accepted"):
            store.put("alice", framed(basis, 4), policy(store))
        with pytest.raises(RollbackError, match="another vector with this sequence"):
            store.put("alice", framed(basis, 5, value=0.25), policy(store))
        with pytest.raises(RollbackError):  # a request's own vector, not from the store
            policy(store).check(framed(basis, 4), basis, user="alice")
        store.close()
        store = Store(path, bases)
    assert store.delete("alice")
    assert not store.delete("alice")
    assert store.get("alice") is None
    with pytest.raises(RollbackError):
        store.put("alice", framed(basis, 4), policy(store))
    assert store.put("bob", framed(basis, 4, "bob"), policy(store)).sequence == 4


@pytest.mark.parametrize("end", ["kill", "close"])
def test_what_was_acknowledged_outlives_a_process_that_leaves(path, bases, tmp_path, end):
    """One process puts; another opens the store and leaves; the first goes on, and is killed or closes."""
    save_bases(bases, tmp_path / "basis.gguf")
    code = """
import sys
from tinylora_edge import *
from tinylora_edge.formats.side_tensors import load_bases
from tinylora_edge.serve.store import Store
bases, key = load_bases(sys.argv[2]), Hmac(bytes(range(32)))
basis = bases.basis(numbers=13)
store = Store(sys.argv[1], bases)
policy = Policy(keys=[key], state=store.sequences)
for line in sys.stdin:
    sequence = int(line)
    for user in ("alice", f"user{sequence}"):
        vector = MicroVector(basis.values([1.0] * basis.size), sequence=sequence)
        store.put(user, vector.to_bytes(basis, tag=key, user=user), policy)
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
    store = Store(path, bases)
    found = store.get("alice")
    assert found is not None
    assert found.sequence == 13
    assert all(store.get(f"user{sequence}") for sequence in range(1, 14))
    with pytest.raises(RollbackError):
        store.put("alice", framed(bases.basis(numbers=13), 5), policy(store))


def test_stores_that_race_never_go_back(path: Path, bases: Bases, basis: Basis) -> None:
    """Each has a connection of its own, as each of several servers has."""

    def put(seed: int) -> None:
        with closing(Store(path, bases)) as store:
            for sequence in random.Random(seed).sample(range(1, 41), 40):
                with suppress(RollbackError):
                    store.put("alice", framed(basis, sequence), policy(store))
                found = store.get("alice")
                assert found is not None
                assert found.sequence >= sequence
                assert found.frame == framed(basis, found.sequence)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(put, range(4)))


def test_a_file_that_is_no_store(tmp_path: Path, bases: Bases) -> None:
    damaged, other, later, pipe = (tmp_path / f"{name}.db" for name in ("damaged", "other", "later", "pipe"))
    os.mkfifo(pipe)
    mode = pipe.stat().st_mode
    damaged.write_bytes(b"no database at all" * 100)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (a)")
    Store(later, bases).close()
    with sqlite3.connect(later) as connection:
        connection.execute("PRAGMA user_version = 1")
    for path, message in (
        (damaged, r"damaged.db cannot be used: file is not a database"),
        (other, "no store of users' vectors"),
        (tmp_path, "cannot be used"),
        (pipe, "cannot be used"),
        (later, r"version 1, but this release reads 3: name a new file"),
    ):
        with pytest.raises(StoreError, match=message):
            Store(path, bases)
    assert (damaged.read_bytes(), pipe.stat().st_mode) == (b"no database at all" * 100, mode)
    with pytest.raises(FileNotFoundError, match="make it"):
        Store(tmp_path / "none" / "users.db", bases)


def test_a_file_of_version_2_is_read_on(path: Path, bases: Bases, basis: Basis) -> None:
    Store(path, bases).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(
            """
            DROP TABLE vectors;
            CREATE TABLE vectors (
                factors INTEGER NOT NULL, user TEXT NOT NULL, frame BLOB, sequence INTEGER NOT NULL,
                made REAL NOT NULL, changed REAL NOT NULL, PRIMARY KEY (factors, user)
            ) WITHOUT ROWID;
            PRAGMA user_version = 2;
            """
        )
        for user, data in (("alice", framed(basis, 3)), ("gone", None)):
            connection.execute("INSERT INTO vectors VALUES (1, ?, ?, 3, 0, 0)", (user, data))
    for _ in range(2):
        with closing(Store(path, bases)) as store:
            found = store.get("alice")
            assert found is not None
            assert (found.frame, found.sequence) == (framed(basis, 3), 3)
            assert store.get("gone") is None
            assert store.put("gone", framed(basis, 4, "gone"), policy(store)).sequence == 4
            assert store.delete("gone")


def test_models_share_a_file(store: Store, path: Path, basis: Basis) -> None:
    other = Basis(support.random_factors(blocks=70, rng=1), basis.projection)  # of as many numbers
    second = Store(path, Bases(other.factors))
    store.put("alice", framed(basis, 1), policy(store))
    second.put("alice", framed(other, 7), policy(second))
    found = [each.get("alice") for each in (store, second)]
    assert [entry and entry.sequence for entry in found] == [1, 7]
