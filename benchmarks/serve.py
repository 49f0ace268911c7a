"""Many users of one server at once, a vector each: against one shared vector, and against llama-server.

* tokens a second and latencies of 1, 4, 16 and 64 users, with 13 numbers each or with 13 to 13,440, on both
  engines and in stock llama-server, which takes a LoRA's scales with each request;
* time to the first token of an idle server against the model in process;
* what the vector costs a request: its look-up in the store, and the policy's check;
* how soon a slot is free when its client leaves, and how a server under load ends at SIGTERM.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import _group_loras
import _leaving as leaving
import psutil
from _subjects import NORM, export, smollm2, tiled

from tinylora_edge import Bases, Hmac, MicroVector, Policy, load_bundle, runtime
from tinylora_edge.exporters import export_onnx
from tinylora_edge.runtime.admission import admitted
from tinylora_edge.serve.store import Store
from tinylora_edge.system import cores
from tinylora_edge.wire import text

MAC = bytes(range(32))
N_CTX, LOOKUPS = 512, 500
MOST_EACH = 8  # requests of a user in a round
ENGINES = ("llama", "onnx")
STOCK = "llama-server, a LoRA a request"
LEAST_OF_SHARED, LEAST_OF_STOCK = 0.95, 4.0
MOST_FIRST_MS, MOST_VECTOR_MS = 10.0, 1.0
MOST_TOKENS_TO_FREE, MOST_EXIT_S = 1.0, 5.0

NOUNS = ("rain", "bread", "moon", "river", "cat", "bridge", "clock", "garden", "winter", "train", "apple")
SERVE = [sys.executable, "-c", "from tinylora_edge.cli import main; main()", "serve"]

Ask = Callable[[int, str], dict[str, Any]]
"""The body of a user's request, of his number and the question."""


class Server:
    """A server in a process of its own: its port, and how a user asks it."""

    def __init__(self, port: int, process: subprocess.Popen[Any]) -> None:
        self.port, self.process = port, psutil.Process(process.pid)

    @property
    def cpu_seconds(self) -> float:
        """Seconds of a core that it took so far: what other work on the machine disturbs least."""
        times = self.process.cpu_times()
        return times.user + times.system

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def post(self, connection: http.client.HTTPConnection, body: dict[str, Any]) -> http.client.HTTPResponse:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"the server says {response.status}: {response.read()[:500]!r}")
        return response


@contextmanager
def ours(bundle: Path, engine: str, rows: int, folder: Path) -> Iterator[Server]:
    """`tinylora-edge serve` of a bundle."""
    (folder / "mac").write_text(MAC.hex())
    options = ["--engine", engine, "--port", "0", "--n-ctx", str(N_CTX), "--key", str(folder / "mac")]
    options += ["--slots", str(rows)] if engine == "onnx" else []
    with (folder / f"{engine}.log").open("w") as log:
        command = [*SERVE, str(bundle), "--name", "m", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)/v1", process.stdout.readline())
            if found is None:
                raise SystemExit(Path(log.name).read_text("utf-8"))
            yield Server(int(found[1]), process)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def stock(binary: str, bundle: Path, bases: Bases, slots: int, folder: Path) -> Iterator[Server]:
    """Stock llama-server with an adapter a group of the tiled basis."""
    adapters = _group_loras.write_groups(tiled(bases), folder / "groups")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [binary, "-m", str(bundle / "base.gguf"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-c", str(N_CTX * slots), "-np", str(slots), "-t", str(cores()), "-tb", str(cores())]
    command += ["-ngl", "0", *_group_loras.server_arguments(adapters)]
    with (folder / "stock.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            server = Server(port, process)
            while not _healthy(server):
                if process.poll() is not None:
                    raise SystemExit(Path(log.name).read_text("utf-8")[-2000:])
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


def questions(seed: int) -> Iterator[str]:
    """Questions without end, of about the same length."""
    draw = random.Random(seed)
    while True:
        yield f"Write a few sentences about a {draw.choice(NOUNS)} and a {draw.choice(NOUNS)}."


def load(server: Server, ask: Ask, users: int, requests: int, seed: int) -> dict[str, Any]:
    """What so many users at once get, each of whom asks again as soon as he is answered."""

    def one(user: int) -> list[tuple[float, int]]:
        found, connection = [], server.connect()
        asked = questions(1000 * seed + user)
        for _ in range(requests):
            with bench.stopwatch() as watch:
                response = server.post(connection, ask(user, next(asked)))
                usage = json.loads(response.read())["usage"]
            found.append((watch.seconds, int(usage["completion_tokens"])))
        connection.close()
        return found

    before = server.cpu_seconds
    with ThreadPoolExecutor(users) as threads, bench.stopwatch() as whole:
        answers = [each for found in threads.map(one, range(users)) for each in found]
    taken = server.cpu_seconds - before
    tokens = sum(count for _, count in answers)
    return {
        "tokens_per_second": tokens / whole.seconds,
        "cpu_ms_per_token": 1000 * taken / tokens,
        "tokens": tokens,
        "requests": len(answers),
        "latency": bench.summarize([seconds for seconds, _ in answers]),
    }


def asks(bases: Bases, tokens: int, users: int) -> tuple[Ask, Ask, Ask, Ask]:
    """How users ask ours with 13 numbers each, with five sizes, or with one for all; and llama-server."""
    key, basis = Hmac(MAC), tiled(bases)
    sizes = [basis, bases.basis(numbers=50), *(bases.basis(rank=k) for k in (1, 2, bases.factors.rank))]
    vectors = [MicroVector.random(basis, NORM, seed=user) for user in range(users)]
    grown = [MicroVector.random(sizes[user % len(sizes)], NORM, seed=user) for user in range(users)]
    common = {"model": "m", "max_tokens": tokens, "temperature": 0}

    def body(name: str, question: str, vector: MicroVector) -> dict[str, Any]:
        frame = text.encode(vector.to_bytes(bases.of(vector), tag=key, stream=name))
        messages = [{"role": "user", "content": question}]
        return {**common, "messages": messages, "user": name, "vector": frame}

    def each(user: int, question: str) -> dict[str, Any]:
        return body(f"user{user}", question, vectors[user])

    def any_size(user: int, question: str) -> dict[str, Any]:
        return body(f"grown{user}", question, grown[user])

    def shared(user: int, question: str) -> dict[str, Any]:
        return body(f"shared{user}", question, vectors[0])

    def with_lora(user: int, question: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        return {**common, "messages": messages, "lora": _group_loras.scales(basis, vectors[user])}

    return each, any_size, shared, with_lora


def first_token(server: Server, ask: Ask, bundle: Path, engine: str, rounds: int) -> dict[str, Any]:
    """Seconds to the first text of an idle server, and of the model in process."""
    options: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": cores()}
    options |= {"n_threads_batch": cores()} if engine == "llama" else {}
    vector = MicroVector.random(tiled(load_bundle(bundle).bases), NORM, seed=0)
    with runtime.load(bundle, vector, engine=engine, **options) as llm:
        asked, connection = questions(7), server.connect()

        def over_http() -> float:
            body = ask(0, next(asked)) | {"stream": True}
            with bench.stopwatch() as watch:
                response = server.post(connection, body)
                while b'"content":"' not in (line := response.readline()) or b'"content":""' in line:
                    if not line:
                        raise SystemExit("a stream ended without a text")
            response.read()
            return watch.seconds

        def in_process() -> float:
            messages = [{"role": "user", "content": next(asked)}]
            with bench.stopwatch() as watch:
                chunks = llm.create_chat_completion(messages, stream=True, max_tokens=4, temperature=0)
                next(c for c in chunks if c["choices"][0]["delta"].get("content"))
            chunks.close()
            return watch.seconds

        times = bench.interleave({"server": over_http, "in process": in_process}, rounds, 2)
    differences = [a - b for a, b in zip(times["server"], times["in process"], strict=True)]
    found: dict[str, Any] = {name: bench.summarize(values) for name, values in times.items()}
    return found | {"paired_difference": median(differences)}


def vector_cost(bases: Bases, rank: int, folder: Path) -> list[float]:
    """Seconds that a look-up in the store and the check of what it has take, as every request has them.

    A rank of 0 is 13 numbers.
    """
    key, times = Hmac(MAC), []
    basis = bases.basis(rank=rank) if rank else tiled(bases)
    store = Store(folder / f"users-{rank}.db", bases)
    policy = Policy(keys=[key], state=store.sequences)
    for number in range(64):
        user = f"user{number}"
        frame = MicroVector.random(basis, NORM, seed=number).to_bytes(basis, tag=key, stream=user)
        store.put(user, frame, policy)
    draw = random.Random(0)
    for _ in range(LOOKUPS):
        user = f"user{draw.randrange(64)}"
        with bench.stopwatch() as watch:
            stored = store.get(user)
            assert stored is not None
            with admitted(stored.frame, bases, policy, stream=user):
                pass
        times.append(watch.seconds)
    store.close()
    return times[64:]


def measure(report: bench.Report, options: Any, folder: Path) -> None:
    bundles = {"llama": options.llama, "onnx": options.onnx}
    if bundles["llama"] is None:
        bundles["llama"] = export(folder)[0]
    if bundles["onnx"] is None:
        bundles["onnx"] = export_onnx(smollm2(), folder / "onnx", precision="int4").output
    bases = {engine: load_bundle(bundles[engine]).bases for engine in ENGINES}
    most = max(options.users)
    per_engine = {engine: asks(bases[engine], options.tokens, most) for engine in ENGINES}
    named = os.environ.get("LLAMA_SERVER")
    binary = named or shutil.which("llama-server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with ExitStack() as stack:
        servers = {e: stack.enter_context(ours(bundles[e], e, options.rows, folder)) for e in ENGINES}
        contestants: dict[str, tuple[Server, Ask]] = {}
        for engine in ENGINES:
            each, any_size, shared, _ = per_engine[engine]
            contestants[f"{engine}, a vector each"] = servers[engine], each
            contestants[f"{engine}, of five sizes"] = servers[engine], any_size
            contestants[f"{engine}, one shared"] = servers[engine], shared
        if binary is not None:
            served = stack.enter_context(
                stock(binary, bundles["llama"], bases["llama"], options.rows, folder)
            )
            contestants[STOCK] = served, per_engine["llama"][3]
        for server, ask in contestants.values():
            load(server, ask, 2, 1, 0)
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for users in options.users:
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
            requests = min(max(options.requests // users, 1), MOST_EACH)
            for number in range(options.rounds):
                names = list(contestants)[number % len(contestants) :]
                for name in [*names, *(n for n in contestants if n not in names)]:
                    runs[name].append(load(*contestants[name], users, requests, 1 + number))
            found[str(users)] = runs
            show(report, users, runs)
        report.record["load"] = found
        compare(report, found)
        for engine in ENGINES:
            each = per_engine[engine][0]
            first = first_token(servers[engine], each, bundles[engine], engine, options.first)
            report.record.setdefault("first_token", {})[engine] = first
            milliseconds = {k: 1000 * first[k]["median"] for k in ("server", "in process")}
            report.say(f"\n{engine}, ms to the first token: {milliseconds}")
            report.target(
                f"{engine}: first token, server less in process, ms",
                1000 * first["paired_difference"],
                "<=",
                MOST_FIRST_MS,
            )
            left(report, engine, servers[engine], each, options)
    for rank in (0, bases["llama"].factors.rank):
        cost = bench.summarize(vector_cost(bases["llama"], rank, folder))
        what = f"rank {rank}" if rank else "13 numbers"
        report.record.setdefault("vector_seconds", {})[what] = cost
        report.target(f"look-up and check, {what}, p95 in ms", 1000 * cost["p95"], "<=", MOST_VECTOR_MS)


def left(report: bench.Report, engine: str, server: Server, ask: Ask, options: Any) -> None:
    """Clients that leave, and then the server: it is gone afterwards."""
    asked = questions(11)
    freed = leaving.freed(server, lambda: ask(0, next(asked)), options.first)
    report.record.setdefault("client_leaves", {})[engine] = freed
    milliseconds = {name: 1000 * freed[name]["median"] for name in ("token", "free")}
    report.say(f"\n{engine}, ms of a token, and until the slot of a client who left is free: {milliseconds}")
    report.target(
        f"{engine}: tokens until the slot is free, median of pairs",
        median(freed["ratio"]),
        "<=",
        MOST_TOKENS_TO_FREE,
    )
    stopped = leaving.stopped(server, lambda user: ask(user, next(asked)), max(options.users))
    report.record.setdefault("sigterm", {})[engine] = stopped
    report.target(f"{engine}: seconds from SIGTERM to the exit", stopped["seconds"], "<=", MOST_EXIT_S)
    cut = stopped["streams"] - stopped["ended"] - stopped["told why"]
    report.target(f"{engine}: streams that were cut without saying why", cut, "<=", 0)


def show(report: bench.Report, users: int, runs: dict[str, list[dict[str, Any]]]) -> None:
    rows = []
    for name, measured in runs.items():
        latencies = [each["latency"] for each in measured]
        rows.append(
            [
                name,
                f"{median([each['tokens_per_second'] for each in measured]):.1f}",
                f"{median([each['median'] for each in latencies]):.2f}",
                f"{median([each['p95'] for each in latencies]):.2f}",
                f"{median([each['cpu_ms_per_token'] for each in measured]):.1f}",
                str(sum(each["requests"] for each in measured)),
            ]
        )
    report.say(f"\n{users} users at once")
    report.say(bench.table(["", "tokens/s", "p50 s", "p95 s", "core ms/token", "requests"], rows))


def compare(report: bench.Report, found: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Ratios of neighbours in one round: what slows the machine for a while falls on both."""
    for users, runs in found.items():
        for engine in ENGINES:
            own = runs[f"{engine}, a vector each"]
            bounded = ((f"{engine}, one shared", LEAST_OF_SHARED), (STOCK, LEAST_OF_STOCK))
            for other, least in (*bounded, (f"{engine}, of five sizes", 0)):
                if other not in runs:
                    continue
                pairs = zip(own, runs[other], strict=True)
                both = list(pairs)
                ratio = median([a["tokens_per_second"] / b["tokens_per_second"] for a, b in both])
                cores_ratio = median([b["cpu_ms_per_token"] / a["cpu_ms_per_token"] for a, b in both])
                what = f"{users} users, {engine}: a vector each / {other}, tokens/s"
                report.record.setdefault("ratios", {})[what] = ratio
                report.record.setdefault("core_ratios", {})[what] = cores_ratio
                if engine == "onnx" and users == "16" and least:
                    report.target(what, ratio, ">=", least)
                else:
                    report.say(f"        {what}: {ratio:.3g}")
                report.say(f"        the same by time on cores: {cores_ratio:.3g}")


def main() -> int:
    parser = bench.parser(__doc__, rounds=3)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16, 64], help="at once (1 4 16 64)")
    parser.add_argument("--requests", type=int, default=128, help="of all users in a round (%(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer at most (%(default)s)")
    parser.add_argument(
        "--rows", type=int, default=16, help="ONNX's batch, llama-server's slots (%(default)s)"
    )
    parser.add_argument("--first", type=int, default=20, help="rounds of the first token (%(default)s)")
    parser.add_argument(
        "--llama", type=Path, help="a bundle for llama.cpp; SmolLM2 Q4_1 is exported otherwise"
    )
    parser.add_argument("--onnx", type=Path, help="one for ONNX Runtime; SmolLM2 in int4 otherwise")
    options = parser.parse_args()
    report = bench.Report("serve", options.json)
    report.record |= {
        name: getattr(options, name) for name in ("users", "requests", "tokens", "rows", "rounds")
    }
    with tempfile.TemporaryDirectory() as name:
        measure(report, options, Path(name))
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
