"""The store: what is put is there, and nothing older comes back, whoever asks."""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import postgres
import pytest
import support

from tinylora_edge import Bases, Basis, Hmac, MicroVector, Policy
from tinylora_edge.errors import FrameError, RequestError, RollbackError, SignatureError, StoreError
from tinylora_edge.formats.side_tensors import save_bases
from tinylora_edge.serve.store import Store, Stored

KEY = Hmac(bytes(range(32)))


@pytest.fixture(scope="module")
def bases() -> Bases:
    return Bases(support.random_factors(blocks=70, rank=8))


@pytest.fixture(scope="module")
def database() -> Iterator[postgres.Server]:
    with postgres.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def path(memory: Path, request: pytest.FixtureRequest) -> str:
    """A new store: an SQLite file, or a database of PostgreSQL."""
    if request.param == "sqlite":
        return str(memory / "users.db")
    server: postgres.Server = request.getfixturevalue("database")
    return server.make()


@pytest.fixture
def store(path: str, bases: Bases) -> Iterator[Store]:
    with closing(Store(path, bases)) as made:
        yield made


def framed(basis: Basis, sequence: int, user: str = "alice", *, value: float = 0.5) -> bytes:
    vector = MicroVector(basis.values(np.full(basis.size, value)), sequence=sequence)
    return vector.to_bytes(basis, tag=KEY, user=user)


def policy(store: Store) -> Policy:
    return Policy(keys=[KEY], state=store.sequences)


def test_what_is_put_is_there(store: Store, path: str, bases: Bases, basis: Basis) -> None:
    assert store.get("alice") is None
    store.put("alice", framed(basis, 1), policy(store))
    second = store.put("alice", framed(basis, 2), policy(store))
    assert store.get("alice") == second
    assert (second.frame, second.sequence) == (framed(basis, 2), 2)
    assert store.get("bob") is None
    store.close()
    again = Store(path, bases)
    assert again.get("alice") == second
    assert "://" in path or Path(path).stat().st_mode & 0o077 == 0
    again.close()


def test_nothing_older_comes_back(store: Store, path: str, bases: Bases, basis: Basis) -> None:
    store.put("alice", framed(basis, 5), policy(store))
    for _ in range(2):
        with pytest.raises(RollbackError, match="sequence 4, but 5 was already accepted"):
            store.put("alice", framed(basis, 4), policy(store))
        with pytest.raises(RollbackError, match="another vector with this sequence"):
            store.put("alice", framed(basis, 5, value=0.25), policy(store))
        with pytest.raises(RollbackError):  # a request's own vector, not from the store
            policy(store).check(framed(basis, 4), basis, user="alice")
        again = Store(path, bases)
        assert again.get("alice") == store.get("alice")
        again.close()
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
from tinylora_edge.serve.store import Store, Stored
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
    with closing(Store(path, bases)) as store:
        found = store.get("alice")
        assert found is not None
        assert found.sequence == 13
        assert all(store.get(f"user{sequence}") for sequence in range(1, 14))
        with pytest.raises(RollbackError):
            store.put("alice", framed(bases.basis(numbers=13), 5), policy(store))


def test_stores_that_race_never_go_back(path: str, bases: Bases, basis: Basis) -> None:
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


def test_many_are_put_at_once_and_listed(store: Store, basis: Basis) -> None:
    frames = [(f"user{number:03}", framed(basis, 2, f"user{number:03}")) for number in range(600)]
    store.put("user004", framed(basis, 3, "user004"), policy(store))
    found = dict(
        store.put_many([*frames, ("default", b""), ("cut", framed(basis, 1, "cut")[:-1])], policy(store))
    )
    refused = {user: type(each) for user, each in found.items() if not isinstance(each, Stored)}
    assert refused == {"user004": RollbackError, "default": RequestError, "cut": FrameError}
    assert len(found) == 602
    first = store.listed(most=500)
    rest = store.listed(first[-1].user)
    assert [each.user for each in first + rest] == [user for user, _ in frames]
    assert {each.sequence for each in first + rest} == {2, 3}
    assert first[0] == ("user000", 2, len(frames[0][1]))
    twice = [("eve", framed(basis, sequence, "eve")) for sequence in (2, 1, 3)]
    kinds = [type(each) for _, each in store.put_many(twice, policy(store))]
    assert kinds == [Stored, RollbackError, Stored]
    assert store.get("eve").frame == twice[2][1]


def test_what_was_learned_for_long_replaces_nothing_that_came_meanwhile(
    store: Store, path: str, bases: Bases, basis: Basis
) -> None:
    rules = policy(store)
    assert store.last("alice") is None
    assert store.put_newer("alice", framed(basis, 1), rules)
    assert store.put_newer("alice", framed(basis, 1), rules), "it is there"
    assert not store.put_newer("alice", framed(basis, 1, value=0.25), rules)
    store.put("alice", framed(basis, 4), rules)
    assert store.last("alice") == 4
    assert not store.put_newer("alice", framed(basis, 2), rules)
    other = Hmac(bytes(32))  # whose sequences rise by themselves, but not under those of another key
    vector = MicroVector(basis.values(np.full(basis.size, 0.5)), sequence=4)
    frame = vector.to_bytes(basis, tag=other, user="alice")
    assert not store.put_newer("alice", frame, Policy(keys=[other], state=store.sequences))
    assert store.get("alice") == Stored("alice", framed(basis, 4), 4)
    store.delete("alice")
    assert store.last("alice") == 4

    def put(seed: int) -> list[int]:  # each has a store, and learns from what it says
        with closing(Store(path, bases)) as own:
            return [
                sequence
                for step in range(20)
                if own.put_newer(
                    "bob",
                    framed(basis, sequence := 1 + (own.last("bob") or 0), "bob", value=seed + step / 32),
                    policy(own),
                )
            ]

    with ThreadPoolExecutor(4) as threads:
        stored = [sequence for each in threads.map(put, range(4)) for sequence in each]
    assert sorted(stored) == [*range(1, 1 + store.last("bob"))], "each sequence is somebody's alone"


def test_a_vector_is_checked_once_and_always_the_newest(path: str, bases: Bases, basis: Basis) -> None:
    """Two servers: what one of them keeps is never older than what the other one acknowledged."""
    with closing(Store(path, bases)) as store, closing(Store(path, bases)) as other:
        rules = policy(store)
        assert store.admitted("alice", rules) is None
        for sequence in range(1, 6):
            other.put("alice", framed(basis, sequence, value=sequence / 8), policy(other))
            found = store.admitted("alice", rules)
            assert found is not None
            assert (found.sequence, found.user, found.values[0]) == (sequence, "alice", sequence / 8)
            assert store.admitted("alice", rules) is found, "nothing was checked again"
        assert store.admitted("bob", rules) is None
        policy(other).record(policy(other).check(framed(basis, 9), bases, user="alice"))
        with pytest.raises(RollbackError, match="sequence 5, but 9"):
            store.admitted("alice", rules)
        with pytest.raises(SignatureError):  # of another policy, which has another key
            store.admitted("alice", Policy(keys=[Hmac(bytes(32))]))
        other.delete("alice")
        assert store.admitted("alice", rules) is None


def test_users_who_ask_seldom_are_checked_again(store: Store, basis: Basis, monkeypatch) -> None:
    for user in ("ann", "bob"):
        store.put(user, framed(basis, 1, user), rules := policy(store))
    monkeypatch.setattr("tinylora_edge.serve.store._KEPT_BYTES", basis.R(np.zeros(13)).nbytes)
    first = store.admitted("ann", rules)
    assert store.admitted("ann", rules) is first
    assert store.admitted("bob", rules) is not None
    assert store.admitted("ann", rules) is not first


def test_a_click_is_stored_whole_or_not_at_all(store: Store, basis: Basis) -> None:
    rules, clicks = policy(store), (0, basis.digest, b"state")
    for name in "ab":
        store.remember(name, "app", "alice", b"answer")
    assert store.answers("ac") == {"a": ("app", "alice", b"answer")}
    assert store.learned("alice", framed(basis, 1), rules, ["a", "c"], clicks) is None
    assert store.get("alice") is None
    assert store.learned("alice", framed(basis, 1), rules, ["a"], clicks) is not None
    assert store.clicks("alice", basis.digest) == (1, b"state")
    assert store.clicks("alice", "another") == (1, None)
    for revision in (0, 2):  # learned from what is another by now
        again = (revision, basis.digest, b"later")
        assert store.learned("alice", framed(basis, 2), rules, ["b"], again) is None
    assert store.learned("alice", framed(basis, 0), rules, ["b"], (1, basis.digest, b"later")) is None
    assert (store.get("alice").sequence, [*store.answers("ab")]) == (1, ["b"])
    store.put("alice", framed(basis, 1), rules)  # which clicks made: they go on
    assert store.clicks("alice", basis.digest) == (1, b"state")
    store.put("alice", framed(basis, 2), rules)
    assert (store.clicks("alice", basis.digest), store.answers("b")) == ((0, None), {})


def test_a_database_that_is_away_comes_back_by_itself(bases: Bases, basis: Basis) -> None:
    with postgres.running() as server, closing(Store(server.url(), bases)) as store:
        store.put("alice", framed(basis, 1), policy(store))
        server.stop()
        server.start()

        def is_there() -> bool:  # at once, but on a processor that takes 2 s for a connection
            with suppress(StoreError):
                return store.get("alice") is not None
            return False

        support.wait_until(is_there)
        server.kill()
        for _ in range(2):
            with pytest.raises(StoreError, match=r"cannot be used|could not be reached"):
                store.get("alice")
        with pytest.raises(StoreError, match="connection failed"):
            Store(server.url(), bases)
        server.start()

        def is_back() -> bool:
            with suppress(StoreError):
                return store.put("alice", framed(basis, 2), policy(store)).sequence == 2
            return False

        support.wait_until(is_back)
    with pytest.raises(StoreError, match="cannot be used"):
        Store("postgresql://nobody:secret@127.0.0.1:1/none?bad=1", bases)


@contextmanager
def proxy(to: int) -> Iterator[tuple[int, threading.Event]]:
    """A port that forwards to one of PostgreSQL; once the event is set, it hangs up in place of the reply to
    the next commit, and clears the event."""
    cut, listening = threading.Event(), socket.create_server(("127.0.0.1", 0))

    def forward(source: socket.socket, target: socket.socket, *, replies: bool) -> None:
        with suppress(OSError), source, target:
            while data := source.recv(1 << 16):
                if replies and cut.is_set() and b"COMMIT\0" in data:
                    cut.clear()
                    for each in (source, target):
                        each.shutdown(socket.SHUT_RDWR)
                    return
                target.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, server = listening.accept()[0], socket.create_connection(("127.0.0.1", to))
                for ends, replies in (((client, server), False), ((server, client), True)):
                    threading.Thread(
                        target=forward, args=ends, kwargs={"replies": replies}, daemon=True
                    ).start()

    threading.Thread(target=accept, daemon=True).start()
    with listening:
        yield listening.getsockname()[1], cut
        listening.shutdown(socket.SHUT_RDWR)


def test_a_commit_whose_reply_is_lost_was_done_once(
    database: postgres.Server, bases: Bases, basis: Basis
) -> None:
    address = database.make()
    with (
        proxy(database.port) as (port, cut),
        closing(Store(address.replace(f":{database.port}/", f":{port}/"), bases)) as store,
    ):
        rules = policy(store)

        def lost(call: Callable[[], Any]) -> Any:
            cut.set()
            result = call()
            assert not cut.is_set()
            return result

        for name in "ab":
            store.remember(name, "app", "alice", b"answer")
        clicks = (0, basis.digest, b"state")
        learned = lost(lambda: store.learned("alice", framed(basis, 1), rules, ["a"], clicks))
        assert learned == store.get("alice") == Stored("alice", framed(basis, 1), 1)
        assert (store.clicks("alice", basis.digest), [*store.answers("ab")]) == ((1, b"state"), ["b"])
        other = store.learned("alice", framed(basis, 1), rules, ["b"], clicks)
        assert other is None, "the same click on another answer was not learned, and is to be made again"
        assert lost(lambda: store.put("alice", framed(basis, 2), rules)).sequence == 2
        assert lost(lambda: store.put_newer("alice", framed(basis, 3), rules))
        many = [("al", framed(basis, 1, "al"))]
        assert dict(lost(lambda: [*store.put_many(many, rules)])) == {"al": store.get("al")}
        assert lost(lambda: store.delete("alice")), "it had a vector"
        assert store.get("alice") is None
        assert not lost(lambda: store.delete("alice"))


def test_a_file_that_is_no_store(tmp_path: str, bases: Bases) -> None:
    damaged, other, later, pipe = (tmp_path / f"{name}.db" for name in ("damaged", "other", "later", "pipe"))
    os.mkfifo(pipe)
    mode = pipe.stat().st_mode
    damaged.write_bytes(b"no database at all" * 100)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (a)")
    Store(later, bases).close()
    with sqlite3.connect(later) as connection:
        connection.execute("UPDATE tinylora_store SET version = 2")
    for path, message in (
        (damaged, r"damaged.db cannot be used: file is not a database"),
        (other, "not a store of vectors"),
        (tmp_path, "cannot be used"),
        (pipe, "cannot be used"),
        (later, r"later.db has version 2, but this release reads 1 at most: update it"),
    ):
        with pytest.raises(StoreError, match=message):
            Store(path, bases)
    assert (damaged.read_bytes(), pipe.stat().st_mode) == (b"no database at all" * 100, mode)
    with pytest.raises(FileNotFoundError, match="make this directory"):
        Store(tmp_path / "none" / "users.db", bases)


def test_models_share_a_file(store: Store, path: str, basis: Basis) -> None:
    other = Basis(support.random_factors(blocks=70, rng=1), basis.projection)  # of as many numbers
    second = Store(path, Bases(other.factors))
    store.put("alice", framed(basis, 1), policy(store))
    second.put("alice", framed(other, 7), policy(second))
    found = [each.get("alice") for each in (store, second)]
    second.close()
    assert [entry and entry.sequence for entry in found] == [1, 7]
