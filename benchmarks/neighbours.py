"""What attacks on a server cost a neighbour, and how much memory thousands of requests leave in use.

The neighbour sends one request after the other, by turns alone and under an attack. Some attacks should cost
the neighbour little: connections that send nothing, bodies that never come, pipelined requests whose answers
nobody reads, vectors while another process has locked the store, and clients that repeat the slowest schemas
or prompts. Others take a share of the tokens: many long answers for one user (`flood`), one key with many
users (`users`), and one key with 40 connections, each of which asks for 8 answers for a new user with a
vector: plain ones (`choices`), with 20 log-probabilities a token, with long prompts, by clients that leave
after a moment, and as streams that are read a byte at a time.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from string import ascii_lowercase
from threading import Event, Thread
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
from _servers import KEY, NOUNS, Server, load, ours
from _subjects import add_bundles, bundle_of

from tinylora_edge import Basis, MicroVector, load_bundle
from tinylora_edge.wire import text

NEIGHBOUR, ATTACKER, OTHERS = (f"{who}-key-1" for who in ("neighbour", "attacker", "others"))
ENGINES = ("llama", "onnx")
CHAT, QUIET = "/v1/chat/completions", "quiet"
CONNECTIONS, BODIES, UNREAD, FLOOD, STUCK = 2000, 1100, 64, 32, 16
CLIENTS, USERS = 8, 1200
HOSTILE, CHOICES, ANSWER, LONG, MOMENT_S = 40, 8, 300, 150, 0.2  # LONG: words of a prompt
SHARED = ("flood", "users", "choices", "logprobs", "long", "leaving", "slow")  # attacks that take tokens
MOST_RATIO, MOST_MEDIAN, MOST_MB, MOST_TIMES, MOST_END_S = 2.0, 4.0, 20.0, 1.5, 5.0
WARM = 500  # requests after which memory is compared

Attack = Callable[[ExitStack], None]


def slow_schemas() -> list[dict[str, Any]]:
    """Return the schemas that cost the server most, among those that it refuses and those that it accepts."""
    arrays = [{"type": "array", "items": {"$ref": f"#/$defs/{n}"}} for n in range(6)]
    chain = {f"{n}": {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}]} for n in range(1200)} | {"1200": {}}
    ranges = [{"type": "number", "minimum": n + 0.1234567, "maximum": 1e15 + n} for n in range(800)]
    return [
        {"type": "string", "allOf": [{"pattern": f".*{letter}.*"} for letter in ascii_lowercase[:24]]},
        {"$ref": "#/$defs/0", "$defs": chain},
        {"type": "string", "pattern": r"^((.{0,65536}é\w)+){0,3}$"},
        {"type": "array", "items": arrays[0], "$defs": {f"{n}": {"anyOf": arrays} for n in range(6)}},
        {"type": "object", "properties": {f"p{n}": {} for n in range(400)}},
        {"anyOf": ranges},
        {"type": "string", "pattern": "^(.*a.{30}|.*b.{30}|.*c.{30})$"},
        {"type": "string", "format": "email", "minLength": 3, "maxLength": 65536},
        {"type": "string", "pattern": f"^(?i:{'|'.join(f'w{n}' for n in range(9000))})$"},
    ]


def slow_prompts() -> list[list[dict[str, str]]]:
    """Return the chats of less than a megabyte that cost the server most."""
    words = " ".join(random.choices(NOUNS, k=30_000))
    letters = "".join(random.choices(ascii_lowercase, k=165_000))
    runs = " ".join(letters[begin : begin + 1000] for begin in range(0, 160_000, 1000))
    few = [{"role": "user", "content": text} for text in (letters, runs, words)]
    many = {"role": "user", "content": "x"}
    return [[many] * 25_000, [many] * 500, *([each] for each in few)]


class Target:
    """A server that is attacked, and what its clients send."""

    def __init__(self, server: Server, basis: Basis, store: Path, tokens: int) -> None:
        self.server, self.basis, self.store, self.tokens = server, basis, store, tokens

    def body(self, tokens: int, user: str = "", *, vector: bool = False) -> dict[str, Any]:
        """Return the body of a request. A vector is the user's first, whose sequence the store must write."""
        question = f"Write about a {random.choice(NOUNS)} and a {random.choice(NOUNS)}."
        body = {"model": "m", "messages": [{"role": "user", "content": question}], "temperature": 0}
        if vector:
            frame = MicroVector.random(self.basis, 0.05).to_bytes(self.basis, tag=KEY, user=user)
            body["vector"] = text.encode(frame)
        return body | {"max_tokens": tokens, "user": user}

    def ask(self, connection: http.client.HTTPConnection, key: str, body: dict[str, Any]) -> int:
        """Ask, and read the answer; return its status."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", CHAT, json.dumps(body), headers)
        response = connection.getresponse()
        response.read()
        return response.status

    def send(self, stack: ExitStack, data: bytes) -> socket.socket:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", self.server.port)))
        connection.settimeout(0.2)
        with suppress(OSError):
            connection.send(data)
        return connection

    def request(self, key: str, body: dict[str, Any]) -> bytes:
        content = json.dumps(body).encode()
        return head(key, len(content)) + content

    # The attacks

    def idle(self, stack: ExitStack) -> None:
        for number in range(CONNECTIONS):
            self.send(stack, b"" if number % 2 else b"POST /v1/chat")

    def bodies(self, stack: ExitStack) -> None:
        for _ in range(BODIES):
            self.send(stack, head(ATTACKER, 1000))

    def unread(self, stack: ExitStack) -> None:
        for _ in range(UNREAD):
            connection = self.send(stack, b"")
            with suppress(OSError):
                for _ in range(20):
                    connection.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 100)

    def flood(self, stack: ExitStack) -> None:
        for _ in range(FLOOD):
            self.send(stack, self.request(ATTACKER, self.body(400, "mallory")))

    def locked(self, stack: ExitStack) -> None:
        other = sqlite3.connect(self.store, isolation_level=None)
        stack.callback(other.close)
        other.execute("BEGIN EXCLUSIVE")
        for number in range(STUCK):
            user = f"stuck{number}-{time.monotonic_ns()}"
            self.send(stack, self.request(ATTACKER, self.body(1, user, vector=True)))

    def schemas(self, stack: ExitStack) -> None:
        schemas = slow_schemas()

        def body(number: int) -> dict[str, Any]:
            schema = schemas[number % len(schemas)]
            if number % 3:
                return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
            parameters = {"type": "object", "properties": {"a": schema}, "$defs": schema.get("$defs", {})}
            tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
            return {"tools": [tool], "tool_choice": "required"}

        self.clients(stack, CLIENTS, lambda number: self.body(64) | body(number))

    def prompts(self, stack: ExitStack) -> None:
        prompts = slow_prompts()
        many = len(prompts)
        self.clients(stack, CLIENTS, lambda number: self.body(64) | {"messages": prompts[number % many]})

    def choices(self, stack: ExitStack, moment_s: float = 0.0, **own: Any) -> None:
        over = f"{time.monotonic_ns()}"

        def body(number: int) -> dict[str, Any]:
            return self.body(ANSWER, f"user{over}-{number}", vector=True) | {"n": CHOICES} | own

        self.clients(stack, HOSTILE, body, moment_s)

    def logprobs(self, stack: ExitStack) -> None:
        self.choices(stack, logprobs=True, top_logprobs=20)

    def leaving(self, stack: ExitStack) -> None:
        self.choices(stack, MOMENT_S)

    def long(self, stack: ExitStack) -> None:
        def body(number: int) -> dict[str, Any]:
            text = " ".join(random.choices(NOUNS, k=LONG))
            return self.body(1, f"user{time.monotonic_ns()}", vector=True) | {
                "n": CHOICES,
                "messages": [{"role": "user", "content": text}],
            }

        self.clients(stack, HOSTILE, body)

    def slow(self, stack: ExitStack) -> None:
        over = Event()

        def read(connections: list[socket.socket]) -> None:
            while not over.wait(0.1):
                for connection in connections:
                    with suppress(OSError):
                        connection.recv(1)

        def send(number: int) -> socket.socket:
            body = self.body(ANSWER, f"user{time.monotonic_ns()}-{number}", vector=True)
            connection = self.send(stack, self.request(ATTACKER, body | {"n": CHOICES, "stream": True}))
            connection.setblocking(False)
            return connection

        thread = Thread(target=read, args=([send(number) for number in range(HOSTILE)],))
        thread.start()
        stack.callback(thread.join)
        stack.callback(over.set)

    def clients(
        self, stack: ExitStack, many: int, body: Callable[[int], dict[str, Any]], moment_s: float = 0.0
    ) -> None:
        """Start clients of one key that ask until the attack ends; with `moment_s` they leave after so long.
        `body` is that of the request with a number."""
        over, numbers = Event(), count()

        def work() -> None:
            while not over.is_set():
                connection = self.server.connect()
                connections.add(connection)
                if moment_s:
                    connection.timeout = moment_s
                with suppress(OSError, http.client.HTTPException):
                    self.ask(connection, ATTACKER, body(next(numbers)))
                connections.discard(connection)
                connection.close()

        def end() -> None:
            over.set()
            for connection in list(connections):
                if connection.sock is not None:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

        connections = set[http.client.HTTPConnection]()
        threads = [Thread(target=work) for _ in range(many)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(end)

    def users(self, stack: ExitStack) -> None:
        for number in range(USERS):
            self.send(stack, self.request(ATTACKER, self.body(self.tokens, f"user{number}")))

    @contextmanager
    def under(self, attack: Attack | None) -> Iterator[None]:
        """Attack during the block, and then wait until no request of the attack is left."""
        with ExitStack() as stack:
            if attack is not None:
                attack(stack)
            yield
        connection = self.server.connect()
        while any(load(connection)):
            time.sleep(0.05)
        connection.close()

    def neighbour(self, attack: Attack | None, requests: int) -> list[float]:
        """Return the seconds that each answer takes the neighbour, who uses a new connection each time."""
        times = []
        with self.under(attack):
            for _ in range(requests):
                with bench.stopwatch() as watch:
                    connection = self.server.connect()
                    status = self.ask(connection, NEIGHBOUR, self.body(self.tokens))
                    connection.close()
                if status != 200:
                    raise SystemExit(f"the neighbour gets {status}")
                times.append(watch.seconds)
        return times


def head(key: str, length: int) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Authorization: Bearer {key}", f"Content-Length: {length}", "", ""]).encode()


def resident(target: Target, requests: int) -> list[int]:
    """Return the resident bytes of a server after each tenth of a number of requests, by many users."""
    each, found = max(1, requests // 10), []

    def one(number: int) -> None:
        user = f"user{number % 997}"
        body = target.body(2, user, vector=number % 2 == 0) | {"stream": number % 3 == 0}
        connection = target.server.connect()
        status = target.ask(connection, OTHERS, body)
        connection.close()
        if status != 200:
            raise SystemExit(f"a request gets {status}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(min(WARM, requests))))
        found.append(target.server.memory()["resident"])
        for begin in range(0, requests, each):
            list(threads.map(one, range(begin, begin + each)))
            found.append(target.server.memory()["resident"])
    return found


def measure(report: bench.Report, options: Any, folder: Path) -> None:
    (folder / "keys").touch(mode=0o600)
    (folder / "keys").write_text(f"{OTHERS}\n{NEIGHBOUR} neighbour\n{ATTACKER}\n")
    for engine in options.engines:
        bundle, here = bundle_of(engine, options, folder), folder / f"{engine}-server"
        here.mkdir()
        options_of = ["--engine", engine, "--store", here / "users.db", "--api-keys", folder / "keys"]
        options_of += ["--grace", "1"]
        with ours(bundle, here, *options_of) as server:
            target = Target(
                server, load_bundle(bundle).bases.basis(numbers=13), here / "users.db", options.tokens
            )
            attacks: dict[str, Attack | None] = {QUIET: None}
            attacks |= {name: getattr(target, name) for name in options.attacks}
            times: dict[str, list[float]] = {name: [] for name in attacks}
            target.neighbour(None, 3)
            connection = server.connect()  # the first schema, which takes memory for a table of the tokens
            target.ask(connection, NEIGHBOUR, target.body(8) | {"response_format": {"type": "json_object"}})
            connection.close()
            target.neighbour(target.flood, 3)
            before = server.memory()["resident"]
            for number in range(options.rounds):
                names = list(attacks)[number % len(attacks) :]
                for name in [*names, *(each for each in attacks if each not in names)]:
                    times[name] += target.neighbour(attacks[name], options.each)
            found = {name: bench.summarize(seconds) for name, seconds in times.items()}
            ratios = {
                of: {name: each[of] / found[QUIET][of] for name, each in found.items()}
                for of in ("median", "p95")
            }
            report.record.setdefault("neighbour", {})[engine] = {"seconds": found, "ratios": ratios}
            rows = [
                [name, *(f"{each[of]:.2f}" for of in ratios), *(f"{ratios[of][name]:.2f}" for of in ratios)]
                for name, each in found.items()
            ]
            report.say("\n" + bench.table([engine, "p50 s", "p95 s", "p50, times quiet", "p95"], rows))
            for name in options.attacks:
                of, most = ("median", MOST_MEDIAN) if name in SHARED else ("p95", MOST_RATIO)
                report.target(f"{engine}: {of} under {name}, times quiet", ratios[of][name], most)
            times_more = server.memory()["peak"] / before
            report.target(f"{engine}: resident memory at its peak, times before", times_more, MOST_TIMES)
            report.record.setdefault("log_bytes", {})[engine] = (here / "log").stat().st_size
            if options.requests:
                sizes = resident(target, options.requests)
                report.record.setdefault("resident", {})[engine] = sizes
                grown = (max(sizes) - sizes[0]) / 1e6
                report.target(f"{engine}: MB more after {options.requests:,} requests", grown, MOST_MB)
            report.target(f"{engine}: seconds from SIGTERM to the end", seconds_to_end(target), MOST_END_S)


def seconds_to_end(target: Target) -> float:
    """Return the seconds from SIGTERM to the end of a server to which clients send slow schemas."""
    with ExitStack() as stack:
        target.schemas(stack)
        time.sleep(3)
        with bench.stopwatch() as watch:
            target.server.process.terminate()
            target.server.process.wait()
    return watch.seconds


def main() -> None:
    parser = bench.parser(__doc__, rounds=5)
    attacks = ["idle", "bodies", "unread", "locked", "schemas", "prompts", *SHARED]
    parser.add_argument("--attacks", nargs="*", choices=attacks, default=attacks, metavar="NAME")
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=ENGINES, metavar="NAME")
    parser.add_argument("--each", type=int, default=8, help="of the neighbour, a round (%(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="of their answers (%(default)s)")
    parser.add_argument("--requests", type=int, default=5000, help="for the memory; 0: none (%(default)s)")
    add_bundles(parser)
    options = parser.parse_args()
    report = bench.Report("neighbours", options.json)
    report.record |= {name: getattr(options, name) for name in ("rounds", "each", "tokens", "requests")}
    with tempfile.TemporaryDirectory() as name:
        measure(report, options, Path(name))
    report.finish()


if __name__ == "__main__":
    main()
