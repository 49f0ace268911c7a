"""Tokens a second of a pool beside those of one folded vector, with all cores, and with one that is taken.

Each contestant is a process of its own, which sleeps while another one is measured: `load` with the vector,
and pools in which 1, 4 and 16 users ask at once. Vectors are of the default size.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
from _subjects import frames, smollm2

from tinylora_edge import load_bundle, runtime
from tinylora_edge.exporters import export_gguf
from tinylora_edge.process import cores

USERS = (1, 4, 16)
PROMPT = "Count to a thousand: 1, 2, 3, 4, 5, 6,"  # which ends late, under each vector
SPAWN = multiprocessing.get_context("spawn")


def vectors_of(bundle: Path, count: int) -> list[bytes]:
    """Return frames of vectors of the largest size."""
    bases = load_bundle(bundle).bases
    return frames(bases.basis(rank=bases.factors.shape), count)


def folded(bundle: Path, tokens: int, talk: Connection) -> None:
    """Generate with a folded vector, one user, as often as is asked."""
    [vector] = vectors_of(bundle, 1)
    llm = runtime.load(bundle, vector, n_threads=cores())
    prompt = llm.tokenize(PROMPT.encode())

    def rate() -> float:
        llm.reset()
        llm.eval(prompt)
        begun = time.perf_counter()
        for _ in range(tokens):
            llm.eval([llm.sample(temp=0.0)])
        return tokens / (time.perf_counter() - begun)

    serve(rate, talk)


def pooled(users: int, bundle: Path, tokens: int, talk: Connection) -> None:
    """Generate in a pool, `users` at once, each with a vector, as often as is asked."""
    vectors = vectors_of(bundle, users)

    async def one(pool: runtime.Pool, number: int) -> tuple[float, int]:
        """Return when the first token came, and how many came after it."""
        options = {"account": str(number), "max_tokens": tokens, "temperature": 0.0, "raw": True}
        stream = pool.stream(PROMPT, vector=vectors[number], **options)
        begun = 0.0
        async for _ in stream:
            begun = begun or time.perf_counter()
        assert stream.finish is not None
        return begun, stream.finish.completion_tokens - 1

    async def rate(pool: runtime.Pool) -> float:
        answers = await asyncio.gather(*(one(pool, number) for number in range(users)))
        return sum(n for _, n in answers) / (time.perf_counter() - min(begun for begun, _ in answers))

    with runtime.Pool(bundle, slots=users, n_ctx=512) as pool:
        serve(lambda: asyncio.run(rate(pool)), talk)


def serve(rate: Callable[[], float], talk: Connection) -> None:
    talk.send(rate())  # the first one warms up
    while talk.recv():
        talk.send(rate())


def spin() -> None:
    while True:
        pass


@contextmanager
def running(target: Callable[..., None], *arguments: object) -> Iterator[None]:
    process = SPAWN.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama", type=Path, help="a bundle; by default SmolLM2 is exported")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    report = bench.Report("threads", options.json)
    report.record |= {"tokens": options.tokens, "taken": {}}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bundle = options.llama or export_gguf(smollm2(), Path(folder) / "bundle").output
        contestants = {"load": folded} | {f"pool, {n}": partial(pooled, n) for n in USERS}
        asking: dict[str, Connection] = {}
        for name, target in contestants.items():
            asking[name], other = SPAWN.Pipe()
            stack.enter_context(running(target, bundle, options.tokens, other))
            other.close()
            asking[name].recv()

        def measure(name: str) -> float:
            asking[name].send(True)
            return float(asking[name].recv())

        for taken in (0, 1):
            with running(spin) if taken else ExitStack():
                rates = bench.interleave({name: partial(measure, name) for name in asking}, options.rounds)
            found = {name: bench.summarize(values) for name, values in rates.items()}
            report.record["taken"][str(taken)] = found
            report.say(f"\n{taken} of {cores()} cores taken by other work, tokens a second:")
            rows = [
                [name, *(f"{each[key]:.1f}" for key in ("min", "median"))] for name, each in found.items()
            ]
            report.say(bench.table(["", "least", "median"], rows))
            alone = found["load"]["median"]
            for users, share in zip(USERS, (0.8, 1.0, 1.5), strict=True):
                report.target(
                    f"{share:g} of load's tokens over those of a pool, {users} at once, {taken} cores taken",
                    share * alone / found[f"pool, {users}"]["median"],
                    1.0,
                )
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
