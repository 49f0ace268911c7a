"""Servers of one store, killed at any moment while users put vectors, chat and click on each of them."""

from __future__ import annotations

import http.client
import json
import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import postgres
import pytest
import support
from servers import free_port, running
from serving import Serving, keys_file, serving

from tinylora_edge import Bases, Basis, Ed25519Signer
from tinylora_edge.serve.store import Store
from tinylora_edge.wire.text import decode

pytestmark = pytest.mark.slow

KEY = Ed25519Signer(bytes(range(32)))
USERS, CLICKERS, THREADS = 200, 4, 12  # the vectors of the first ones are made by clicks, those of others put
AWAY = ("store_unavailable",)  # what a request says that needs the database
PROXY = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
HAPROXY = pytest.mark.skipif(
    not shutil.which("haproxy"), reason="needs HAProxy: install Debian's package haproxy"
)


@contextmanager
def proxy(folder: Path, ports: list[int]) -> Iterator[int]:
    """HAProxy before servers at some ports, as it is deployed; its own port."""
    port, text = free_port(), PROXY.read_text("utf-8")
    servers = "".join(f"    server s{number} 127.0.0.1:{number}\n" for number in ports)
    text = re.sub(r"^    server .*\n", "", text, flags=re.M).replace("bind :8000", f"bind 127.0.0.1:{port}")
    (folder / "haproxy.cfg").write_text(text + servers, "utf-8")
    with subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], stderr=DEVNULL) as process:
        try:
            yield port
        finally:
            process.kill()


class Fleet:
    """Servers of one store, any of which may be killed, behind a proxy where there is one."""

    def __init__(self, bundle: Path, folder: Path, store: str, count: int, *more: str) -> None:
        private, public = KEY.pem()
        keys = ("--key", keys_file(folder, public, "pub"), "--sign", keys_file(folder, private, "key"))
        self._options = (bundle, "--name", "tiny", "--store", store, "--feedback", *keys, *more)
        self._folder, self._rooms, self.logs = folder, [ExitStack() for _ in range(count)], list[Path]()
        self._ports, self._proxy = [free_port() for _ in range(count)], ExitStack()
        self.servers = [self._start(number) for number in range(count)]
        self._front: Serving | None = None
        if shutil.which("haproxy"):
            port = self._proxy.enter_context(proxy(folder, self._ports))
            self._front = replace(self.servers[0], port=port)
            support.wait_until(lambda: self.ask("GET", "/health")[0] == 200)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for room in (self._proxy, *self._rooms):
            room.close()

    def kill(self, number: int) -> None:
        """Kill a server, and start another one in its place."""
        self.servers[number].process.kill()
        self._restart(number)

    def replace(self, number: int) -> None:
        """Let a server leave, and start another one in its place."""
        self.servers[number].process.terminate()
        assert self.servers[number].process.wait(60) == 0
        self._restart(number)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Ask any of them; 0 where it was killed meanwhile, or none is there."""
        with suppress(OSError, http.client.HTTPException):
            status, reply = (self._front or random.choice(self.servers)).ask(method, path, body, **headers)
            return (
                (0, None) if status >= 500 and isinstance(reply, bytes) else (status, reply)
            )  # a proxy's own
        return 0, None

    def answered(self) -> Iterator[tuple[str, int]]:
        """Which sequence answered each request that a server answered under a vector, by the request's id."""
        for log in self.logs:
            for line in log.read_text("utf-8").splitlines():
                with suppress(ValueError):  # of one that was killed
                    found = json.loads(line)
                    if found.get("status") == 200 and found.get("sequence") is not None:
                        yield found["request"], found["sequence"]

    def _restart(self, number: int) -> None:
        self._rooms[number].close()
        self.servers[number] = self._start(number)

    def _start(self, number: int) -> Serving:
        folder = self._folder / f"server{len(self.logs)}"
        folder.mkdir()
        self.logs.append(folder / "log")
        options, port = (*self._options, "--n-ctx", "128"), self._ports[number]
        return self._rooms[number].enter_context(serving(folder, *options, port=port))


class Users:
    """Users who are served by any server, and what they were told: sequences, and clicks that were taken."""

    def __init__(self, fleet: Fleet, basis: Basis, *, failures: tuple[int, ...] = (0, 429)) -> None:
        self._fleet, self._basis, self._lock, self._failures = fleet, basis, threading.Lock(), failures
        self.told, self.clicks, self.answers = [0] * USERS, [0] * CLICKERS, 0
        self.wrong: list[object] = []

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
            self.chat(user, f"tiny@{user}", f"{number}:{before}:{random.random()}")

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
        self._expect(status, reply, "vector_stale")  # where another put of theirs was quicker
        if status == 200:
            with self._lock:
                self.told[number] = max(self.told[number], sequence)

    def chat(self, user: str, model: str, name: str = "") -> str:
        body = {"model": model, "prompt": f"I am {user}", "max_tokens": 2, "user": user, "temperature": 1}
        status, reply = self._fleet.ask("POST", "/v1/completions", body, X_Request_Id=name)
        self._expect(status, reply, where_killed=AWAY if "@" in model else ())
        self.answers += status == 200
        return reply["id"] if status == 200 else ""

    def click(self, number: int, answer: str) -> None:
        status, reply = self._fleet.ask("POST", "/v1/feedback", {"id": answer, "reward": 1})
        # It could not be remembered; or a database that was killed behind its commit came back for the retry.
        self._expect(status, reply, where_killed=(*AWAY, "answer_not_found", "vector_changed"))
        if status == 200:
            with self._lock:
                self.clicks[number] += 1
                self.told[number] = max(self.told[number], reply["sequence"])

    def check_answers(self) -> int:
        """Compare what answered with what was acknowledged before it was asked for; return how many did."""
        count = 0
        for name, sequence in self._fleet.answered():
            if (found := re.fullmatch(r"(\d+):(\d+):.*", name)) is not None:
                count += 1
                if sequence < int(found[2]):
                    self.wrong.append(f"{sequence} answered user{found[1]}, who was told {found[2]} before")
        return count

    def _frame(self, number: int, sequence: int) -> bytes:
        vector = support.of_norm(self._basis, 3.0, 1 + number, sequence=sequence)
        return vector.to_bytes(self._basis, tag=KEY, user=f"user{number}")

    def _expect(self, status: int, reply: Any, *codes: str, where_killed: tuple[str, ...] = AWAY) -> None:
        """Note an answer that has none of these codes, nor one of the others where servers are killed."""
        if status in (200, *self._failures):
            return
        if reply["error"]["code"] not in (*codes, *(where_killed if 0 in self._failures else ())):
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
    assert users.check_answers() > 0
    assert users.wrong == []


def check_clicks(store: str, bases: Bases, basis: Basis, clicks: list[int]) -> None:
    with closing(Store(store, bases)) as opened:
        for number, count in enumerate(clicks):
            revision, state = opened.clicks(f"user{number}", basis.digest)
            learned = json.loads(state)["state"]["clicks"] if state else 0
            assert learned == revision >= count


def check_without_database(fleet: Fleet) -> None:
    """Who needs a vector of the database gets 503, and nobody else notices."""
    base, stored = ({"model": model, "prompt": "abc", "max_tokens": 1} for model in ("tiny", "tiny@user9"))
    for server in fleet.servers:
        status, reply = server.ask("POST", "/v1/completions", stored)
        assert (status, reply["error"]["code"]) == (503, "store_unavailable")
        assert server.ask("POST", "/v1/completions", base)[0] == 200
        assert server.ask("GET", "/health")[0] == 200


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_servers_of_one_store_are_killed(
    tiny: Path, bases: Bases, basis: Basis, tmp_path: Path, memory: Path, kind: str
) -> None:
    with ExitStack() as stack:
        count, store, database = 2, str(memory / "users.db"), None
        if kind == "postgres":
            database = stack.enter_context(postgres.running())
            count, store = 3, database.make()
        fleet = stack.enter_context(Fleet(tiny, tmp_path, store, count))
        users = Users(fleet, basis)

        def disturb() -> None:
            for number in range(count):
                fleet.kill(number)
                if database is not None and number:
                    database.kill()
                    check_without_database(fleet)
                    database.start()

        attack(fleet, users, disturb)
        check_clicks(store, bases, basis, users.clicks)


@HAPROXY
def test_the_proxy_takes_no_busy_server_for_a_dead_one(tmp_path: Path) -> None:
    checks = []

    class Busy(BaseHTTPRequestHandler):
        """It needs a second to say that it is healthy."""

        def do_GET(self) -> None:
            if self.path == "/health":
                time.sleep(1)
                checks.append(self.path)
            with suppress(ConnectionError):  # of a proxy that did not wait
                self.send_response_only(200)
                self.end_headers()

    with running(Busy) as server, proxy(tmp_path, [server.server_port]) as port:

        def is_answered() -> bool:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                connection.request("GET", "/")
                return connection.getresponse().status == 200

        support.wait_until(lambda: len(checks) > 2)
        support.wait_until(is_answered)


@HAPROXY
def test_no_request_is_lost_where_servers_are_replaced(
    tiny: Path, bases: Bases, basis: Basis, tmp_path: Path, memory: Path
) -> None:
    """Each server leaves with SIGTERM, and every request gets its answer."""
    store = str(memory / "users.db")
    with Fleet(tiny, tmp_path, store, 2, "--drain", "5") as fleet:
        users = Users(fleet, basis, failures=())

        def disturb() -> None:
            for number in range(2):
                fleet.replace(number)
                new = fleet.servers[number]
                support.wait_until(lambda: any(line["route"] != "/health" for line in new.lines()))  # noqa: B023

        attack(fleet, users, disturb)
        check_clicks(store, bases, basis, users.clicks)
