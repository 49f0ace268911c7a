"""Attacks by one client of a server: the neighbours get their answers, and learn nothing."""

from __future__ import annotations

import json
import select
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from serving import Serving, framed, head, keys_file, mac_file, serving
from support import wait_until

from tinylora_edge import Basis
from tinylora_edge.wire.text import encode as as_text

PLAIN = "/v1/completions"
GOOD: dict[str, Any] = {"model": "tiny", "prompt": "abcdefgh", "max_tokens": 3, "temperature": 0}
APP, OTHER_APP, ALICE, BOB = (
    {"Authorization": f"Bearer {name}-key-1"} for name in ("first-app", "other-app", "alice", "bob")
)
PLACES = 32
SHORT = "from tinylora_edge.serve import process; process._PATIENCE_S = 1; "


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("server")
    keys = keys_file(folder, "first-app-key-1\nother-app-key-1\nalice-key-1 alice\nbob-key-1 bob\n")
    options = ("--store", folder / "users.db", "--key", mac_file(folder), "--api-keys", keys)
    limits = ("--n-ctx", "4096", "--max-requests", str(PLACES), "--slots", "2")
    with serving(folder, tiny, *options, *limits) as running:
        yield running


def opened(stack: ExitStack, port: int, sent: bytes = b"") -> socket.socket:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
    connection.sendall(sent)
    return connection


def status(connection: socket.socket) -> int:
    return int(connection.recv(65_536).split(None, 2)[1])


def answered(connections: list[socket.socket]) -> list[bytes]:
    """The first bytes of each answer that has come; it stays to be read."""
    come, *_ = select.select(connections, [], [], 0)
    return [connection.recv(16, socket.MSG_PEEK) for connection in come]


def test_who_sends_nothing_is_left(tiny: Path, tmp_path: Path) -> None:
    """Before a first head, in the middle of it, behind an answer."""
    with serving(tmp_path, tiny, before=SHORT) as server, ExitStack() as stack:
        for sent in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nG"):
            connection = opened(stack, server.port, sent)
            while connection.recv(1000):  # until the server ends it
                pass
        trickling = opened(stack, server.port, b"GET /health HTTP/1.1\r\nX: ")
        until = time.monotonic() + 20
        with suppress(ConnectionError):
            while time.monotonic() < until:
                trickling.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() < until, "who sends a byte now and then is idle too"
        assert server.ask("GET", "/v1/models")[0] == 200


def test_bodies_that_never_come(server: Serving) -> None:
    """Of one app, and of whoever has no key: they take no place of another's."""
    with ExitStack() as stack:
        nobody = [opened(stack, server.port, head(PLAIN, {}, 500)) for _ in range(2 * PLACES)]
        assert {status(each) for each in nobody} == {401}
        for each in nobody:  # who gets one answer, and the connection ends
            while each.recv(1000):
                pass
        stuck = [opened(stack, server.port, head(PLAIN, APP, 500)) for _ in range(PLACES)]
        refused = [each for each in stuck[PLACES // 2 :] if status(each) == 429]
        assert len(refused) == PLACES // 2
        assert server.ask("POST", PLAIN, GOOD, **APP)[0] == 429
        for headers in (OTHER_APP, ALICE, BOB):
            assert server.ask("POST", PLAIN, GOOD, **headers)[0] == 200
    wait_until(lambda: server.ask("POST", PLAIN, GOOD, **APP)[0] == 200)


@pytest.mark.parametrize("user", ["mallory", "u{}"])
def test_one_key_fills_no_queue(server: Serving, user: str) -> None:
    """With requests of one user of an app, for whom no other user of it waits; or with one each of many."""
    with ExitStack() as stack:
        flood = []
        for number in range(2 * PLACES):
            body = json.dumps(GOOD | {"max_tokens": 3000, "user": user.format(number)}).encode()
            flood.append(opened(stack, server.port, head(PLAIN, APP, len(body)) + body))
        # A request whose user was not read yet takes a place of its app alone: wait until all were read.
        wait_until(lambda: len(answered(flood)) + sum(server.busy()) == len(flood))
        assert any(b" 429 " in each for each in answered(flood))
        for headers in ([APP] if user == "mallory" else []) + [OTHER_APP, ALICE, BOB] * 3:
            assert server.ask("POST", PLAIN, GOOD | {"user": "ann"}, **headers)[0] == 200
    wait_until(lambda: server.busy() == (0, 0))


def test_grammars_that_take_too_much_hold_nobody_up(tiny: Path, tmp_path: Path) -> None:
    """Nothing is computed for clients who leave before they are answered, and SIGTERM ends what runs."""
    numbers = [{"type": "integer", "multipleOf": number} for number in (9000, 9001, 9002)]
    bomb = {"type": "json_object", "schema": {"anyOf": numbers}}
    flood = json.dumps(GOOD | {"n": 8, "response_format": bomb}).encode()
    keys = keys_file(tmp_path, "first-app-key-1\nother-app-key-1\n")
    with serving(tmp_path, tiny, "--api-keys", keys, "--max-requests", str(PLACES), "--grace", "1") as server:
        with ExitStack() as stack:
            for _ in range(PLACES // 2):
                opened(stack, server.port, head(PLAIN, APP, len(flood)) + flood)
            good = {"type": "json_object", "schema": {"const": 1}}
            for more in ({}, {"response_format": good, "max_tokens": 9}):
                assert server.ask("POST", PLAIN, GOOD | more, **OTHER_APP)[0] == 200
        wait_until(lambda: len(server.lines()) == PLACES // 2 + 2)
        statuses = [line["status"] for line in server.lines()]
        assert statuses.count(200) == 2
        assert 499 in statuses, "who left is gone"
        assert {*statuses} <= {200, 400, 429, 499}
        with ExitStack() as stack:
            for _ in range(PLACES // 2):
                opened(stack, server.port, head(PLAIN, APP, len(flood)) + flood)
            server.process.terminate()
            assert server.process.wait(60) == 0
        assert [line for line in server.lines() if line["level"] != "info"] == []


def test_nobody_learns_the_prompts_of_another(server: Serving, basis: Basis) -> None:
    """By `cached_tokens`: long ids, an app's users, two apps, and two keys."""

    def cached(user: str = "", model: str = "tiny", headers: dict[str, str] = APP) -> int:
        code, answer = server.ask("POST", PLAIN, body | {"user": user, "model": model}, **headers)
        assert code == 200
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    for user in ("team", "alice"):
        vector = {"vector": as_text(framed(basis, user))}
        assert server.ask("PUT", f"/v1/vectors/{user}", vector, **APP)[0] == 200
    body = GOOD | {"prompt": "The secret of A is seven."}
    long = "a" * 200
    for first, *others in (
        [partial(cached, f"{long}1"), partial(cached, f"{long}2"), partial(cached, long[:128])],
        [partial(cached, "ann"), cached, partial(cached, "ann", headers=OTHER_APP)],
        [partial(cached, "ann", "tiny@team"), partial(cached, "bob", "tiny@team")],
        [partial(cached, "", "tiny@alice", ALICE), partial(cached, "alice", "tiny@alice")],
    ):
        first()
        assert first() > 0
        for other in others:
            first()
            assert other() == 0


def test_metrics_are_the_operators(server: Serving) -> None:
    code, body = server.ask("GET", "/metrics", **ALICE)
    assert (code, body["error"]["code"]) == (403, "not_the_operator")
    code, text = server.ask("GET", "/metrics", **APP)
    assert code == 200
    assert b"alice" not in text
    server.ask("GET", "/v1/models", **APP)
    server.wait_for_line("/v1/models")
    server.ask("POST", PLAIN, GOOD | {"user": "bob"}, **APP)
    server.wait_for_line(PLAIN)
    app, bob = (line["tenant"] for line in server.lines()[-2:])
    assert len(app) == len(bob) == 12
    assert app != bob
    server.ask("GET", "/v1/vectors/alice", **ALICE)
    server.ask("POST", PLAIN, GOOD | {"model": "tiny@alice"}, **ALICE)
    server.wait_for_line(PLAIN)
    assert "alice" not in server.log.read_text("utf-8"), "a tenant is a hash"


def test_a_store_that_waits_for_its_lock(server: Serving, basis: Basis) -> None:
    """Whoever needs it waits; who does not is answered, however many wait."""
    with ExitStack() as stack:
        other = sqlite3.connect(server.log.parent / "users.db", isolation_level=None)
        stack.callback(other.close)
        other.execute("BEGIN EXCLUSIVE")
        stuck = []
        for number in range(6):
            user = f"user{number}"
            frame = framed(basis, user)
            with_vector = json.dumps(GOOD | {"vector": as_text(frame), "user": user}).encode()
            stuck.append(opened(stack, server.port, head(PLAIN, APP, len(with_vector)) + with_vector))
            put = json.dumps({"vector": as_text(frame)}).encode()
            sent = head(f"/v1/vectors/{user}", OTHER_APP, len(put), "PUT") + put
            stuck.append(opened(stack, server.port, sent))
        time.sleep(0.5)  # their threads wait by now
        for _ in range(5):
            assert server.ask("POST", PLAIN, GOOD, **BOB)[0] == 200
        assert other.in_transaction
        other.execute("ROLLBACK")
        assert {status(each) for each in stuck} <= {200, 503}
