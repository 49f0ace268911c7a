"""What more users cost a server: 1 to 10,000 users with a vector each, by default 16 requests at a time.

Vectors have 13 to 13,440 numbers, all sizes mixed. Who asks next is drawn uniformly, or after Zipf's law (the
n-th user has a weight of 1 / n). Each number of users has a server and a store of its own, and all of them
take turns. All servers get the same requests: prompts that begin differently, so that no cache of prompts
helps, for answers of 16 to 32 tokens, so that these do not all end together.

* onnx, llama: `tinylora-edge serve` of a bundle, whose requests name the user (`m@user7`);
* stock: llama-server with a LoRA for each user, the same vectors as GGUFs, whose requests name one in `lora`.
  It loads all of them when it starts;
* base: llama-server without adapters, which is the limit for `llama`.

The tokens of a turn are counted while all places are busy: with 16, from the 17th request until the last one
is sent. Each turn is a row of the record, to which another run adds.
"""

from __future__ import annotations

import queue
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import _servers as servers
from _subjects import add_bundles, bundle_of
from _tables import users as table

from tinylora_edge import load_bundle

MOST_TOKENS = 32
STOCK_USERS = 100  # most users of the stock server, each of whose LoRAs takes 9 MB of its memory


@dataclass(frozen=True)
class Arm:
    """A number of users of a server, who are drawn by one of two laws."""

    server: str
    users: int
    law: str

    def draw(self, random: random.Random, count: int) -> list[int]:
        weights = accumulate(1 / (n + 1) if self.law == "zipf" else 1.0 for n in range(self.users))
        return random.choices(range(self.users), cum_weights=list(weights), k=count)


@dataclass
class Turn:
    """The requests of a turn: when each was sent, when its texts came, and its tokens, cached ones too."""

    at_once: int
    sent: list[float] = field(default_factory=list)
    answers: list[tuple[float, list[float], int, int]] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return the figures of the time in which all places were busy."""
        begin, end = self.sent[self.at_once], self.sent[-1]
        tokens = sum(
            count * sum(begin < at <= end for at in times) / len(times) for _, times, count, _ in self.answers
        )
        first = [1000 * (times[0] - at) for at, times, _, _ in self.answers if at >= begin]
        return {
            "tokens_per_second": round(tokens / (end - begin), 2),
            "first_ms": [round(each, 1) for each in first],
            "seconds": round(end - begin, 2),
            "requests": len(self.answers),
            "cached_tokens": sum(cached for *_, cached in self.answers),
        }


def turn(server: servers.Server, body: servers.Own, users: list[int], at_once: int, seed: int) -> Turn:
    """Let users ask, `at_once` of them at a time."""
    draw, found, lock = random.Random(seed), Turn(at_once), threading.Lock()
    left = queue.SimpleQueue[dict[str, Any]]()
    for user in users:
        about = f"{draw.randrange(10**6)} is the number of this chat. Answer in a few sentences."
        question = f"Write about a {draw.choice(servers.NOUNS)} and a {draw.choice(servers.NOUNS)}."
        messages = [{"role": "system", "content": about}, {"role": "user", "content": question}]
        length = draw.randint(MOST_TOKENS // 2, MOST_TOKENS)
        common = {"messages": messages, "max_tokens": length, "temperature": 0, "stream": True}
        left.put({**common, "stream_options": {"include_usage": True}, **body(user)})

    def work(_: int) -> None:
        while True:
            with lock:
                try:
                    request = left.get_nowait()
                except queue.Empty:
                    return
                at = time.perf_counter()
                found.sent.append(at)
            times, cost = list[float](), dict[str, Any]()
            connection = server.connect()  # a new one, as llama-server ends a connection after some answers
            for text, usage in servers.pieces(server.post(connection, request)):
                times += [time.perf_counter()] if text else []
                cost = usage or cost
            connection.close()
            cached = (cost.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            if times:  # else the answer was empty
                found.answers.append((at, times, cost["completion_tokens"], cached))

    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(work, range(at_once)))
    return found


def opened(
    stack: ExitStack, options: Any, bundles: dict[str, Path], folder: Path
) -> dict[tuple[str, int], tuple[servers.Server, servers.Own]]:
    """Start a server for each number of users; return each, with what a user's requests have of their own."""
    found: dict[tuple[str, int], tuple[servers.Server, servers.Own]] = {}
    for users in options.users:
        place = folder / str(users)
        place.mkdir()
        for kind in (each for each in ("llama", "onnx") if each in options.servers):
            bases, store = load_bundle(bundles[kind]).bases, place / f"{kind}.db"
            vectors: Iterator[Any] = (servers.vector(bases, user) for user in range(users))
            servers.fill(store, bases, servers.largest(bases, users) if options.largest else vectors)
            arguments = ["--engine", kind, "--slots", str(options.at_once), "--store", str(store)]
            server = stack.enter_context(servers.ours(bundles[kind], place, *arguments))
            found[kind, users] = server, lambda user: {"model": f"m@{servers.name(user)}"}
        if "stock" in options.servers and users <= STOCK_USERS:
            bases = load_bundle(bundles["llama"]).bases
            loras = servers.write_loras(folder, bases, (servers.vector(bases, user) for user in range(users)))
            base = bundles["llama"] / "base.gguf"
            server = stack.enter_context(servers.stock(base, loras, place, slots=options.at_once))
            found["stock", users] = server, lambda user: {"lora": [{"id": user, "scale": 1}]}
    if "base" in options.servers:
        base = bundles["llama"] / "base.gguf"
        server = stack.enter_context(servers.stock(base, (), folder, slots=options.at_once))
        found["base", options.users[0]] = server, lambda user: {}
    return found


def measure(
    began: dict[tuple[str, int], tuple[servers.Server, servers.Own]],
    options: Any,
    study: Path,
    run: dict[str, str],
) -> None:
    """Let all arms take turns, and keep each turn."""
    arms = [Arm(*key, law) for key in began for law in options.laws[: min(key[1], 2)]]
    for number in range(-1, options.rounds):
        shift = number % len(arms)
        for arm in arms[shift:] + arms[:shift]:
            server, body = began[arm.server, arm.users]
            count = options.at_once + options.requests if number >= 0 else 2  # the first round warms up
            found = turn(server, body, arm.draw(random.Random(number), count), options.at_once, number)
            if number >= 0:
                own = {"server": arm.server, "users": arm.users, "law": arm.law, "round": number}
                own["at_once"] = options.at_once
                load = {"load": bench.load_average()[0]}
                bench.keep(study, run | own | found.row() | server.memory() | load)


def main() -> None:
    parser = bench.parser(__doc__, rounds=3)
    parser.add_argument("--servers", nargs="+", default=["onnx", "llama", "stock"])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16, 100, 1000, 10_000])
    parser.add_argument("--at-once", type=int, default=16, help="requests that are answered together (16)")
    parser.add_argument("--requests", type=int, default=48, help="of a turn, beside the first ones (48)")
    parser.add_argument("--laws", nargs="+", default=["zipf", "uniform"], help="(%(default)s)")
    parser.add_argument("--largest", action="store_true", help="64 x 8 numbers each in q4, 8 x 8 on a graph")
    add_bundles(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = Path(options.json) if options.json else folder / "cliff.jsonl"
        engines = ("llama", "onnx") if "onnx" in options.servers else ("llama",)
        bundles = {engine: bundle_of(engine, options, folder) for engine in engines}
        environment = bench.environment()
        run = {"run": environment["time"]}
        with ExitStack() as stack:
            began = opened(stack, options, bundles, folder)
            bench.keep(study, run | {"commit": bench.commit(), "environment": environment})
            measure(began, options, study, run)
        print(table(bench.read_study(study)))


if __name__ == "__main__":
    main()
