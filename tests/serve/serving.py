"""Servers for the tests: the command `serve` in a process of its own, on a port of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import support

from tinylora_edge import Basis, Hmac

MAC = bytes(range(32)).hex()
KEY = Hmac.from_hex(MAC)


def mac_file(folder: Path) -> Path:
    return keys_file(folder, MAC, "device.mac")


def keys_file(folder: Path, keys: str, name: str = "keys") -> Path:
    path = folder / name
    path.write_text(keys)
    path.chmod(0o600)
    return path


MAIN = "from tinylora_edge.cli import main; main()"


@dataclass
class Serving:
    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = self.connect()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        kind = response.getheader("Content-Type", "")
        return response.status, json.loads(data) if kind == "application/json" else data

    def lines(self) -> list[dict[str, Any]]:
        """What the log says, but for the server's beginning and end."""
        return [line for line in self.events() if line["event"] not in ("start", "drain", "stop")]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def text(self) -> str:
        """The log, but for a line that is half written, and for progress: that a slow machine still loads."""
        whole, end, _ = self.log.read_text("utf-8").rpartition("\n")
        return support.without_progress(whole + end)

    def wait_for_line(self, route: str) -> None:
        """Wait until the last line of the log is of this route: it is written when the reply has gone."""
        support.wait_until(lambda: self.lines()[-1]["route"] == route)

    def busy(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""
        _, health = self.ask("GET", "/health")
        return health["running"], health["waiting"]


@contextmanager
def serving(folder: Path, *options: str | Path, before: str = "", port: int = 0) -> Iterator[Serving]:
    """`serve` in a process that runs some code before it; at any port that is free, or at one."""
    command = [sys.executable, "-c", before + MAIN, "serve", *map(str, options)]
    command += ["--port", str(port), "--threads", "2"]
    with _started(folder, command, r"at http://127\.0\.0\.1:(\d+)/v1$") as (server, _):
        yield server


@contextmanager
def playing(folder: Path, *options: str | Path, browser: str = "") -> Iterator[tuple[Serving, str]]:
    command = [sys.executable, "-c", MAIN, "play", *map(str, options), "--threads", "2"]
    command += [] if browser else ["--no-open"]
    announced = r"at http://127\.0\.0\.1:(\d+)/#token=[\w-]{32}$"
    with _started(folder, command, announced, BROWSER=browser) as (server, line):
        yield server, line.split()[-1]


@contextmanager
def _started(folder: Path, command: list[str], announced: str, **more: str) -> Iterator[tuple[Serving, str]]:
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"} | more,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(announced, line)
        assert found, line + log.read_text("utf-8")
        yield Serving(process, int(found[1]), log), line
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()


def framed(
    basis: Basis, user: str, seed: int = 1, *, norm: float = 3.0, sequence: int = 1, key: Hmac = KEY
) -> bytes:
    return support.of_norm(basis, norm, seed, sequence=sequence).to_bytes(basis, tag=key, user=user)


def head(path: str, headers: dict[str, str], length: int, method: str = "POST") -> bytes:
    """Of a request with a body of so many bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers | {"Content-Length": str(length)}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"
