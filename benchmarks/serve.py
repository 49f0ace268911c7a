"""What a server costs one client, compared with the model in process, on both engines.

* the time to the first token of an idle server, and of the model in process;
* how soon a slot is free when its client leaves, and how a server under load ends at SIGTERM.

`cliff.py` measures many clients.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import _leaving as leaving
from _servers import KEY, N_CTX, NOUNS, Server, name, ours, pieces
from _subjects import NORM, add_bundles, bundle_of, tiled

from tinylora_edge import Bases, MicroVector, load_bundle, runtime
from tinylora_edge.process import cores
from tinylora_edge.wire import text

TOKENS, USERS = 48, 64
MOST_FIRST_MS, MOST_TOKENS_TO_FREE, MOST_EXIT_S = 10.0, 1.0, 5.0

Ask = Callable[[int, str], dict[str, Any]]
"""Number of a user, question -> the body of their request."""


def questions(seed: int) -> Iterator[str]:
    """Yield questions of about the same length, without end."""
    draw = random.Random(seed)
    while True:
        yield f"Write a few sentences about a {draw.choice(NOUNS)} and a {draw.choice(NOUNS)}."


def asks(bases: Bases) -> Ask:
    """Return how users ask, each with a vector of 13 numbers."""
    basis = tiled(bases)

    def ask(user: int, question: str) -> dict[str, Any]:
        frame = MicroVector.random(basis, NORM, seed=user).to_bytes(basis, tag=KEY, user=name(user))
        messages = [{"role": "user", "content": question}]
        own = {"user": name(user), "vector": text.encode(frame)}
        return {"model": "m", "max_tokens": TOKENS, "temperature": 0, "messages": messages, **own}

    return ask


def first_token(server: Server, ask: Ask, bundle: Path, engine: str, rounds: int) -> dict[str, Any]:
    """Return the seconds to the first text, of an idle server and of the model in process."""
    options: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": cores()}
    options |= {"n_threads_batch": cores()} if engine == "llama" else {}
    vector = MicroVector.random(tiled(load_bundle(bundle).bases), NORM, seed=0)
    with runtime.load(bundle, vector, engine=engine, **options) as llm:
        texts, connection = questions(7), server.connect()

        def over_http() -> float:
            body = ask(0, next(texts)) | {"stream": True}
            with bench.stopwatch() as watch:
                response = server.post(connection, body)
                next(pieces(response))
            response.read()
            return watch.seconds

        def in_process() -> float:
            messages = [{"role": "user", "content": next(texts)}]
            with bench.stopwatch() as watch:
                chunks = llm.create_chat_completion(messages, stream=True, max_tokens=4, temperature=0)
                next(c for c in chunks if c["choices"][0]["delta"].get("content"))
            chunks.close()
            return watch.seconds

        times = bench.interleave({"server": over_http, "in process": in_process}, rounds, 2)
    differences = [a - b for a, b in zip(times["server"], times["in process"], strict=True)]
    found: dict[str, Any] = {name: bench.summarize(values) for name, values in times.items()}
    return found | {"paired_difference": median(differences)}


def measure(report: bench.Report, options: Any, folder: Path) -> None:
    with ExitStack() as stack:
        for engine in ("llama", "onnx"):
            bundle = bundle_of(engine, options, folder)
            server = stack.enter_context(ours(bundle, folder, "--engine", engine))
            ask = asks(load_bundle(bundle).bases)
            first = first_token(server, ask, bundle, engine, options.rounds)
            report.record.setdefault("first_token", {})[engine] = first
            milliseconds = {k: 1000 * first[k]["median"] for k in ("server", "in process")}
            report.say(f"\n{engine}, ms to the first token: {milliseconds}")
            report.target(
                f"{engine}: first token, server less in process, ms",
                1000 * first["paired_difference"],
                MOST_FIRST_MS,
            )
            left(report, engine, server, ask, options.rounds)


def left(report: bench.Report, engine: str, server: Server, ask: Ask, rounds: int) -> None:
    """Measure clients that leave, and then stop the server and measure that."""
    texts = questions(11)
    freed = leaving.freed(server, lambda: ask(0, next(texts)), rounds)
    report.record.setdefault("client_leaves", {})[engine] = freed
    milliseconds = {name: 1000 * freed[name]["median"] for name in ("token", "free")}
    report.say(f"\n{engine}, ms of a token, and until the slot of a client who left is free: {milliseconds}")
    report.target(
        f"{engine}: tokens until the slot is free, median of pairs",
        median(freed["ratio"]),
        MOST_TOKENS_TO_FREE,
    )
    stopped = leaving.stopped(server, lambda user: ask(user, next(texts)), USERS)
    report.record.setdefault("sigterm", {})[engine] = stopped
    report.target(f"{engine}: seconds from SIGTERM to the exit", stopped["seconds"], MOST_EXIT_S)
    cut = stopped["streams"] - stopped["ended"] - stopped["told why"]
    report.target(f"{engine}: streams that were cut without saying why", cut, 0)


def main() -> None:
    parser = bench.parser(__doc__, rounds=20)
    add_bundles(parser)
    options = parser.parse_args()
    report = bench.Report("serve", options.json)
    with tempfile.TemporaryDirectory() as place:
        measure(report, options, Path(place))
    report.finish()


if __name__ == "__main__":
    main()
