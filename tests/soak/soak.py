"""A soak: threads that exchange vectors, generate, and abandon streams, while memory and answers are watched.

    python tests/soak/soak.py --swaps 10000 --steps 10000

Every user has a vector and an answer that is known from before. Inside `using` a thread must get its own
user's answer; after a plain `swap` somebody's, whole. Some vectors are damaged, and some explode.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from tinylora_edge import (  # noqa: E402
    BusyError,
    Ed25519Signer,
    Ed25519Verifier,
    MicroVector,
    Policy,
    TinyLoraError,
    VectorError,
    runtime,
)

THREADS, USERS, TOKENS = 8, 100, 8
PROMPT = "abc def"
SIGNER = Ed25519Signer(bytes(range(32)))


def llama() -> Any:
    """Return a small random model on llama.cpp, which nobody has used yet."""
    import models

    from tinylora_edge.exporters import ExportSettings, export_gguf

    folder = Path(tempfile.mkdtemp())
    base = models.write_gguf(models.tiny_model("llama"), folder / "tiny.gguf")
    bundle = export_gguf(base, folder / "bundle", settings=ExportSettings(groups=5)).output
    options = {"n_ctx": 64, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return runtime.load(bundle, policy=_policy(), **options)


def onnx() -> Any:
    """Return one on ONNX Runtime."""
    import onnx_bundles

    return runtime.load(onnx_bundles.tiny(), policy=_policy(), n_ctx=64, n_threads=1)


ENGINES: dict[str, Callable[[], Any]] = {"llama": llama, "onnx": onnx}


def _policy() -> Policy:
    return Policy("signature", keys=[Ed25519Verifier(SIGNER.public_key)])


class Soak:
    """One model under load.

    Attributes:
        counts: of what was done, by name.
        wrong: what did not hold, in words.
    """

    def __init__(self, llm: Any, users: int = USERS) -> None:
        self.llm, self.counts, self.wrong = llm, Counter[str](), list[str]()
        self._lock = threading.Lock()
        basis = llm.basis
        self.frames = [
            MicroVector.random(basis, 0.8, seed=user).to_bytes(basis, SIGNER, stream=f"user {user}")
            for user in range(users)
        ]
        huge = np.full((basis.groups, basis.u), 3e38, np.float32)
        self.exploding = MicroVector(huge)
        self.answers = [self._expected(frame, user) for user, frame in enumerate(self.frames)]
        llm.clear()
        self.base = self.complete()

    def _expected(self, frame: bytes, user: int) -> str:
        self.llm.swap(frame, stream=f"user {user}")
        return self.complete()

    def complete(self) -> str:
        answer = self.llm(PROMPT, max_tokens=TOKENS, temperature=0.0)
        return str(answer["choices"][0]["text"])

    def stream(self) -> Any:
        return self.llm(PROMPT, max_tokens=TOKENS, temperature=0.0, stream=True)

    def swaps(self, count: int, threads: int = THREADS) -> None:
        """Exchange vectors so many times, from threads that do something with each."""
        left = iter(range(count))

        def work(seed: int) -> None:
            choice = random.Random(seed)
            while True:
                with self._lock:
                    number = next(left, None)
                if number is None:
                    return
                try:
                    self._one(choice)
                except BaseException as error:
                    self._complain(f"{type(error).__name__}: {error}")
                    return

        pool = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()

    def _one(self, choice: random.Random) -> None:
        user = choice.randrange(len(self.frames))
        frame, name = self.frames[user], f"user {user}"
        kind = choice.choices(
            ("using", "swap", "abandoned", "damaged", "exploding", "clear"), (6, 6, 3, 2, 1, 1)
        )[0]
        self._count(kind)
        if kind == "using":
            with self.llm.using(frame, stream=name):
                self._expect(self.complete(), [self.answers[user]])
        elif kind == "swap":
            self.llm.swap(frame, stream=name)
            self._expect(self.complete(), None)
        elif kind == "abandoned":
            self.llm.swap(frame, stream=name)
            stream = self.stream()
            for _ in range(choice.randrange(1, TOKENS)):
                next(stream, None)
            del stream
        elif kind == "damaged":
            spoiled = bytearray(frame)
            spoiled[choice.randrange(len(spoiled))] ^= 1 << choice.randrange(8)
            try:
                self.llm.swap(bytes(spoiled), stream=name)
                self._complain("a damaged frame was accepted")
            except VectorError:
                pass
        elif kind == "exploding":
            with self.llm.using(self.exploding), suppress(TinyLoraError):  # which ONNX Runtime's side raises
                self.complete()
            with self.llm.using(frame, stream=name):
                self._expect(self.complete(), [self.answers[user]])
        else:
            self.llm.clear()

    def steps(self, count: int, threads: int = THREADS) -> None:
        """Step streams so many times in whichever thread of a pool is free, as ASGI servers do."""
        self.llm.swap(self.frames[0], stream="user 0")
        before = self.counts["steps"]

        async def one() -> None:
            loop, said, stream = asyncio.get_running_loop(), "", self.stream()
            while (chunk := await loop.run_in_executor(pool, next, stream, None)) is not None:
                said += chunk["choices"][0]["text"]
                self._count("steps")
            self._expect(said, [self.answers[0]])

        async def everything() -> None:
            while self.counts["steps"] - before < count:
                for outcome in await asyncio.gather(*(one() for _ in range(16)), return_exceptions=True):
                    if isinstance(outcome, BusyError):
                        self._count("busy")
                    if isinstance(outcome, BaseException):
                        self._complain(f"a stream: {type(outcome).__name__}: {outcome}")
                if self.wrong:
                    return

        with ThreadPoolExecutor(threads) as pool:
            asyncio.run(everything())

    def _expect(self, said: str, allowed: list[str] | None) -> None:
        self._count("answers")
        if said not in (allowed if allowed is not None else [*self.answers, self.base]):
            self._complain(f"{said!r}, expected {'anybody' if allowed is None else allowed[0]!r}")

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def _complain(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what)


def footprint() -> tuple[float, int]:
    """Return what this process holds now: MB of memory, and descriptors."""
    gc.collect()
    with suppress(AttributeError, OSError):  # of glibc: what is free and not given back is no growth
        ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    return process.memory_info().rss / 2**20, process.num_fds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--swaps", type=int, default=10_000, help="of each engine")
    parser.add_argument("--steps", type=int, default=10_000, help="of streams, of each engine")
    parser.add_argument("--engine", choices=[*ENGINES], action="append")
    options = parser.parse_args()
    failed = False
    for engine in options.engine or ENGINES:
        began = time.monotonic()
        with ENGINES[engine]() as llm:
            soak = Soak(llm)
            warm = max(200, options.swaps // 10)  # allocators take what they need for a while
            soak.swaps(warm)
            soak.steps(options.steps // 10)
            memory, files = footprint()
            soak.swaps(options.swaps)
            soak.steps(options.steps)
            after, open_files = footprint()
        grown = after - memory
        held = not soak.wrong and grown < 10 and open_files <= files
        failed |= not held
        figures = {"engine": engine, **soak.counts, "wrong": len(soak.wrong), "busy": soak.counts["busy"]}
        figures |= {"grown MB": round(grown, 1), "descriptors": [files, open_files]}
        print(json.dumps({**figures, "seconds": round(time.monotonic() - began)}), flush=True)
        for what in soak.wrong[:10]:
            print(f"  {what}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
