"""Servers of one store, killed at any moment while users put vectors, chat and click on each of them."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import postgres
import pytest
import support
from serving import Serving, keys_file, serving

from tinylora_edge import Bases, Basis, Ed25519Signer
from tinylora_edge.serve.store import Store
from tinylora_edge.wire.text import decode

pytestmark = pytest.mark.slow

KEY = Ed25519Signer(bytes(range(32)))
USERS, CLICKERS, THREADS = 200, 4, 12  # the vectors of the first ones are made by clicks, those of others put


class Fleet:
    """Servers of one store, any of which may be killed."""

    def __init__(self, bundle: Path, folder: Path, store: str, count: int) -> None:
        private, public = KEY.pem()
        keys = ("--key", keys_file(folder, public, "pub"), "--sign", keys_file(folder, private, "key"))
        self._options = (bundle, "--name", "tiny", "--store", store, "--feedback", *keys)
        self._folder, self._rooms = folder, [ExitStack() for _ in range(count)]
        self.servers = [self._start(number) for number in range(count)]

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for room in self._rooms:
            room.close()

    def kill(self, number: int) -> None:
        """Kill a server, and start another one in its place."""
        self.servers[number].process.kill()
        self._rooms[number].close()
        self.servers[number] = self._start(number)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Ask any of them; 0 where it was killed meanwhile."""
        with suppress(OSError, http.client.HTTPException):
            return random.choice(self.servers).ask(method, path, body, **headers)
        return 0, None

    def _start(self, number: int) -> Serving:
        folder = self._folder / f"server{number}"
        folder.mkdir(exist_ok=True)
        return self._rooms[number].enter_context(serving(folder, *self._options, "--n-ctx", "128"))


class Users:
    """Users who are served by any server, and what they were told: sequences, and clicks that were taken."""

    def __init__(self, fleet: Fleet, basis: Basis, *, away: bool) -> None:
        self._fleet, self._basis, self._lock = fleet, basis, threading.Lock()
        self.told, self.clicks, self.answers = [0] * USERS, [0] * CLICKERS, 0
        self.wrong: list[object] = []
        self._failures = (0, 429, *([503] if away else []))
        self._lost = (404,) if away else ()  # an answer that could not be remembered

    def live(self, number: int) -> None:
        """Do one thing."""
        user, before = f"user{number}", self.told[number]
        if number < CLICKERS:
            if answer := self.chat(user, "tiny"):
                self.click(number, answer)
        elif random.random() < 0.5:
            self.put(number, before + 1)
        elif before:
            status, reply = self._fleet.ask("GET", f"/v1/vectors/{user}")
            self._expect(status, reply)
            if status == 200:
                self.see(number, decode(reply["vector"]), before)
            self.chat(user, f"tiny@{user}")

    def see(self, number: int, frame: bytes, before: int) -> None:
        """Compare a vector with what was acknowledged before it was asked for."""
        sequence = int.from_bytes(frame[5:7], "little")
        if sequence < before:
            self.wrong.append(f"user{number} got sequence {sequence}, and was told {before} before")
        if number >= CLICKERS and frame != self._frame(number, sequence):
            self.wrong.append(f"user{number} got the vector of another")

    def put(self, number: int, sequence: int) -> None:
        headers = {"Content_Type": "application/octet-stream"}
        data = self._frame(number, sequence)
        status, reply = self._fleet.ask("PUT", f"/v1/vectors/user{number}", data, **headers)
        stale = status == 403 and reply["error"]["code"] == "vector_stale"  # another put was quicker
        if not stale:
            self._expect(status, reply)
        if status == 200:
            with self._lock:
                self.told[number] = max(self.told[number], sequence)

    def chat(self, user: str, model: str) -> str:
        body = {"model": model, "prompt": f"I am {user}", "max_tokens": 2, "user": user, "temperature": 1}
        status, reply = self._fleet.ask("POST", "/v1/completions", body)
        self._expect(status, reply)
        self.answers += status == 200
        return reply["id"] if status == 200 else ""

    def click(self, number: int, answer: str) -> None:
        status, reply = self._fleet.ask("POST", "/v1/feedback", {"id": answer, "reward": 1})
        self._expect(status, reply, *self._lost)
        if status == 200:
            with self._lock:
                self.clicks[number] += 1
                self.told[number] = max(self.told[number], reply["sequence"])

    def _frame(self, number: int, sequence: int) -> bytes:
        vector = support.of_norm(self._basis, 3.0, 1 + number, sequence=sequence)
        return vector.to_bytes(self._basis, tag=KEY, user=f"user{number}")

    def _expect(self, status: int, reply: Any, *also: int) -> None:
        if status not in (200, *self._failures, *also):
            self.wrong.append((status, reply))


def attack(fleet: Fleet, users: Users, disturb: Callable[[], None]) -> None:
    """Let users live while something disturbs them; then each server must know all that they were told."""
    over = threading.Event()

    def live() -> None:
        while not over.is_set():
            users.live(random.choice([random.randrange(USERS), random.randrange(2 * CLICKERS)]))

    def told() -> int:
        return sum(map(bool, users.told))

    with ThreadPoolExecutor(THREADS) as threads:
        done = [threads.submit(live) for _ in range(THREADS)]
        try:
            disturb()
            support.wait_until(lambda: users.answers > 50 and sum(users.clicks) > 5 and told() > USERS / 3)
        finally:
            over.set()
        for each in done:
            each.result(120)
    assert users.wrong == []
    for server in fleet.servers:
        support.wait_until(lambda: server.ask("GET", "/v1/vectors/user0")[0] != 503)  # noqa: B023
        for number in (number for number in range(USERS) if users.told[number]):
            status, reply = server.ask("GET", f"/v1/vectors/user{number}")
            assert status == 200, (number, reply)
            users.see(number, decode(reply["vector"]), users.told[number])
        body = {"model": f"tiny@user{number}", "prompt": "abc", "max_tokens": 1}
        assert server.ask("POST", "/v1/completions", body)[0] == 200
    assert users.wrong == []


def check_clicks(store: str, bases: Bases, basis: Basis, clicks: list[int]) -> None:
    with closing(Store(store, bases)) as opened:
        for number, count in enumerate(clicks):
            revision, state = opened.clicks(f"user{number}", basis.digest)
            learned = json.loads(state)["state"]["clicks"] if state else 0
            assert learned == revision >= count


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_servers_of_one_store_are_killed(
    tiny: Path, bases: Bases, basis: Basis, tmp_path: Path, kind: str
) -> None:
    with ExitStack() as stack:
        count, store, database = 2, str(tmp_path / "users.db"), None
        if kind == "postgres":
            database = stack.enter_context(postgres.running())
            count, store = 3, database.make()
        fleet = stack.enter_context(Fleet(tiny, tmp_path, store, count))
        users = Users(fleet, basis, away=database is not None)

        def disturb() -> None:
            for number in (*range(count), 0):
                fleet.kill(number)
                if database is not None:
                    database.kill()
                    database.start()

        attack(fleet, users, disturb)
        check_clicks(store, bases, basis, users.clicks)
