"""Servers in processes of their own, which benchmarks ask: ours, and stock llama-server."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _subjects import write_stock_lora

from tinylora_edge import Bases, Basis, Hmac, MicroVector, Policy
from tinylora_edge.process import cores
from tinylora_edge.serve.store import Store, Stored
from tinylora_edge.wire.frame import message
from tinylora_edge.wire.tags import CRC32, SIZES

KEY = Hmac(bytes(range(32)))
N_CTX = 512
NOUNS = ("rain", "bread", "moon", "river", "cat", "bridge", "clock", "garden", "winter", "train", "apple")
R_NORM = 3.0  # Frobenius norm of the users' R; a trained vector has 0.1 to 80
_SERVE = [sys.executable, "-c", "from tinylora_edge.cli import main; main()", "serve"]


Own = Callable[[int], dict[str, Any]]
"""Number of a user -> what their requests have of their own."""


class Server:
    """A server at an address, and its process; this process stands for that of a server somewhere else."""

    def __init__(
        self, port: int, process: subprocess.Popen[Any] | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.host, self.port = host, port
        self.process = psutil.Process(process.pid if process else None)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=600)

    def post(self, connection: http.client.HTTPConnection, body: dict[str, Any]) -> http.client.HTTPResponse:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"the server says {response.status}: {response.read()[:500]!r}")
        return response

    def memory(self) -> dict[str, int]:
        """Return the resident bytes of the process, now and at their peak."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
        return {"resident": int(found["VmRSS"]) * 1024, "peak": int(found["VmHWM"]) * 1024}


def load(connection: http.client.HTTPConnection) -> tuple[int, int]:
    """Return how many answers run on our server, and how many requests wait."""
    connection.request("GET", "/health")
    found = json.loads(connection.getresponse().read())
    return found["running"], found["waiting"]


def events(response: http.client.HTTPResponse) -> Iterator[str]:
    """Yield the data of a stream's events."""
    while line := response.readline():
        if line.startswith(b"data: "):
            yield line.decode().removeprefix("data: ").strip()


def pieces(response: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield the texts of a stream, each with the usage of tokens once that is there, else None. SystemExit:
    the stream ends with an error."""
    for event in events(response):
        if event == "[DONE]":
            continue
        message = json.loads(event)
        if "error" in message:
            raise SystemExit(f"a stream ends with {message['error']}")
        choices, usage = message.get("choices"), message.get("usage")
        text = choices[0]["delta"].get("content") or "" if choices else ""
        if text or usage:
            yield text, usage


@contextmanager
def ours(bundle: Path, folder: Path, *options: str | Path) -> Iterator[Server]:
    """Run `tinylora-edge serve` of a bundle, under the name m; it checks vectors with `KEY`."""
    (folder / "mac").write_text(bytes(range(32)).hex())
    (folder / "mac").chmod(0o600)
    command = [*_SERVE, str(bundle), "--name", "m", "--port", "0", "--n-ctx", str(N_CTX)]
    command += ["--key", str(folder / "mac"), *map(str, options)]
    with (folder / "log").open("a+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)/v1", process.stdout.readline())
            if found is None:
                log.seek(0)
                raise SystemExit(log.read()[-2000:])
            yield Server(int(found[1]), process)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def stock(base: Path, loras: Sequence[Path], folder: Path, *, slots: int) -> Iterator[Server]:
    """Run stock llama-server with adapters; a request names the one that applies by its place, or none does.

    Args:
        base: a GGUF.
        loras: GGUFs of adapters; none for the base alone.
        folder: where the log goes.
        slots: requests that are answered at the same time.
    """
    named = os.environ.get("LLAMA_SERVER")
    binary = named or shutil.which("llama-server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if binary is None:
        raise SystemExit("there is no llama-server: install one, or name it in LLAMA_SERVER")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [binary, "-m", str(base), "--host", "127.0.0.1", "--port", str(port), "-ngl", "0"]
    command += ["-c", str(N_CTX * slots), "-np", str(slots), "-t", str(cores()), "-tb", str(cores())]
    command += ["--cache-ram", "0"]
    if loras:
        scaled = ",".join(f"{path}:0" for path in loras)
        command += ["--lora-init-without-apply", "--lora-scaled", scaled]
    with (folder / f"stock-{len(loras)}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            server = Server(port, process)
            while not _healthy(server):
                if process.poll() is not None:
                    raise SystemExit(Path(log.name).read_text("utf-8", errors="replace")[-2000:])
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            process.wait()


def _healthy(server: Server) -> bool:
    try:
        connection = server.connect()
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def sizes(bases: Bases) -> list[Basis]:
    """Return the bases that users have in turn: 13 numbers, and all entries of ranks 1, 2, 4 and 8."""
    return [bases.basis(numbers=13), *(bases.basis(rank=k) for k in (1, 2, 4, 8))]


def vector(bases: Bases, user: int, *, norm: float = R_NORM, seed: int | None = None) -> MicroVector:
    """Return the vector of a user: random, of the next size, and of R's norm.

    13 numbers are in int8. The others are in bf16, since int8's best scale takes 0.1 s to find.
    """
    basis = sizes(bases)[user % 5]
    drawn = MicroVector.random(basis, 1, seed=user if seed is None else seed)
    values = drawn.values * (norm / basis.norm(drawn))
    return MicroVector(values, "bf16" if user % 5 else "int8", basis=basis.digest)


def name(user: int) -> str:
    return f"user{user}"


def largest(bases: Bases, users: int) -> Iterator[bytes]:
    """Yield a frame of 64 x 8 in q4 for each user, or of fewer outputs if the factors have fewer.

    The codes are random, and the scales those of one vector, as scales take long to find.
    """
    basis = bases.basis(rank=(min(64, bases.factors.outputs), 8))
    random = np.random.default_rng(0)
    values = MicroVector.random(basis, R_NORM).values
    vector = MicroVector(values, "q4", basis=basis.digest, entries=basis.entries)
    codes = basis.size // 2
    head = vector.to_bytes(basis)[: -codes - SIZES[CRC32]]
    for user in range(users):
        body = bytes([head[0] | KEY.kind << 2]) + head[1:] + random.bytes(codes)
        yield body + KEY.sign(message(name(user), bytes.fromhex(basis.digest), body))


def fill(path: Path, bases: Bases, vectors: Iterator[MicroVector | bytes]) -> None:
    """Put a vector of each user into a new store."""
    store = Store(path, bases)
    policy = Policy(keys=[KEY], state=store.sequences)

    def frames() -> Iterator[tuple[str, bytes]]:
        for user, each in enumerate(vectors):
            if isinstance(each, MicroVector):
                each = each.to_bytes(bases.of(each), tag=KEY, user=name(user))
            yield name(user), each

    for user, stored in store.put_many(frames(), policy):
        assert isinstance(stored, Stored), (user, stored)
    store.close()


def write_loras(folder: Path, bases: Bases, vectors: Iterator[MicroVector]) -> list[Path]:
    """Write each user's vector as a stock LoRA of its rank; return the files."""
    folder.mkdir(exist_ok=True)
    paths = []
    for user, each in enumerate(vectors):
        paths.append(folder / f"{user}.gguf")
        if not paths[-1].exists():
            write_stock_lora(paths[-1], bases.of(each), each)
    return paths
