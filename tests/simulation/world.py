"""A world in which the real pool, service and store run without threads and without waiting.

A seed decides everything: who gets on next (the event loop, the thread of a `Loop`, a thread of `Threads`),
what clients want, what fails. The clock is the world's own. What computes is a toy: the logits of a row are a
hash of its tokens, of the R that each was evaluated under, and of where its prompt was cut.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from asyncio import events
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylora_edge import Bases, Policy
from tinylora_edge.errors import StoreError, TinyLoraError
from tinylora_edge.runtime import pool as pools
from tinylora_edge.runtime.answers import Finish, Request, answering
from tinylora_edge.runtime.engine import Part, Weights
from tinylora_edge.runtime.loop import Loop
from tinylora_edge.runtime.turns import Threads
from tinylora_edge.serve import service as services

CHUNK, VOCABULARY, N_CTX = 64, 32, 400
END = VOCABULARY - 1
NOT_FINITE = 100.0  # an R with a number as large makes logits that are not finite
FAULT = "planted"


class Clock(asyncio.BaseEventLoop):
    """An event loop that the world runs, a handle at a time."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _write_to_self(self) -> None:
        """Another thread wakes a loop so; here there is none."""

    def turn(self) -> bool:
        """Run the next handle; return False where none is ready."""
        while self._scheduled and (self._scheduled[0]._cancelled or self._scheduled[0].when() <= self.now):
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False
            self._ready.append(timer)
        while self._ready:
            handle = self._ready.popleft()
            if not handle._cancelled:
                handle._run()
                return True
        return False

    def skip(self) -> bool:
        """Let the time of the next timer come; return False where there is none."""
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
        if self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        return bool(self._scheduled)


class World:
    """Who gets on next."""

    def __init__(self, seed: int) -> None:
        self.chance, self.clock = random.Random(seed), Clock()
        self.loops, self.threads = list[ToyLoop](), list[ToyThreads]()
        self.turns = self.steps = self.faults = self._depth = 0
        self.running = False  # whether clients may be asking: a server starts and ends without faults
        self.fault_share = self.chance.choice([0.0, 0.0, 0.003, 0.03])
        self.failures = list[Any]()
        self.clock.set_exception_handler(lambda _, context: self.failures.append(context))

    def turn(self) -> bool:
        """Let somebody do one thing; return False where nobody can."""
        self.turns += 1
        self.clock.now += 0.001
        actors: list[Callable[[], bool]] = [self.clock.turn, *(each.turn for each in self.loops)]
        actors += [each.turn for each in self.threads]
        self.chance.shuffle(actors)
        return any(actor() for actor in actors)

    def run(self, over: Callable[[], bool], most: int) -> None:
        """Go on until something is over."""
        events._set_running_loop(self.clock)
        self.running = True
        try:
            for _ in range(most):
                if over():
                    return
                assert self.turn() or self.clock.skip(), "nobody can do anything, and not all is over"
            raise AssertionError(f"it is not over after {most} turns")
        finally:
            self.running = False
            events._set_running_loop(None)

    def pause(self) -> None:
        """Let others get on while a thread computes or waits for a disk."""
        if self.running and self._depth < 3 and self.chance.random() < 0.3:
            self._depth += 1
            for _ in range(self.chance.randint(1, 4)):
                self.turn()
            self._depth -= 1

    def fail(self, error: type[Exception]) -> None:
        """Raise an error now and then."""
        if self.running and self.chance.random() < self.fault_share:
            self.faults += 1
            raise error(f"{FAULT} fault {self.faults}")


class ToyThreads(Threads):
    """Threads that the world runs."""

    world: World

    def _start(self, count: int, name: str) -> None:
        self.world.threads.append(self)

    def turn(self) -> bool:
        taken = self.take()
        if taken is not None:
            self.world.pause()
            self.run(taken)
        return taken is not None


class ToyLoop(Loop):
    """A loop whose steps the world makes. A step must get on: somebody's tokens are evaluated, or who left
    frees a row. Who left before it has no row behind it."""

    world: World
    _stepping = False

    def _start(self) -> None:  # again with each sequence, as there is no thread
        if self not in self.world.loops:
            self.world.loops.append(self)

    def turn(self) -> bool:
        if self._stepping or self._closed or not self._running:
            return False
        before = self.engine.evaluated, self._begun, dict(self._running), self.world.faults
        left = {work for work in self._running.values() if work.cancelled}
        self._stepping = True
        self.step()
        self._stepping = False
        self.world.steps += 1
        after = self.engine.evaluated, self._begun, dict(self._running), self.world.faults
        assert before != after, "a step did nothing"
        assert left.isdisjoint(self._running.values()), "a row is kept for who left"
        return True


class Row:
    """The cells of a row: a hash for each token, of all that its logits depend on."""

    def __init__(self) -> None:
        self.cells, self.digest, self.bad, self.poisoned = list[bytes](), b"", False, False

    def set_r(self, r: NDArray[np.float32] | None) -> None:
        self.digest = b"" if r is None else blake2b(r.tobytes()).digest()
        self.bad = r is not None and float(np.abs(r).max()) >= NOT_FINITE

    def add(self, tokens: Sequence[int], wanted: int) -> list[NDArray[np.float32]]:
        start, found = len(self.cells), []
        self.poisoned |= self.bad
        for number, token in enumerate(tokens):
            before = self.cells[-1] if self.cells else b""
            self.cells.append(blake2b(before + bytes([token]) + self.digest + b"%d" % start).digest())
            if number >= len(tokens) - wanted:
                hashed = blake2b(self.cells[-1] + self.digest, digest_size=2 * VOCABULARY).digest()
                logits = np.frombuffer(hashed, np.uint16).astype(np.float32) / 8192
                found.append(np.full_like(logits, np.nan) if self.poisoned else logits)
        return found


class ToyEngine:
    """Rows of hashes; see `Engine`. It fails now and then."""

    chunk = CHUNK

    def __init__(self, world: World, rows: int, n_ctx: int) -> None:
        self.world, self.rows, self.n_ctx, self.evaluated = world, rows, n_ctx, 0
        self._rows = [Row() for _ in range(rows)]
        self._computing = self._closed = False

    def set_r(self, row: int, r: NDArray[np.float32] | None) -> None:
        self.world.fail(TinyLoraError)
        self._rows[row].set_r(r)

    def evaluate(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        assert not self._closed, "a closed engine is used"
        assert not self._computing, "two threads use the engine"
        assert len({part.row for part in parts}) == len(parts)
        self._computing = True
        self.world.pause()
        self._computing = False
        try:
            self.world.fail(TinyLoraError)
        except TinyLoraError:
            for part in parts:
                self.purge(part.row)
            raise
        found = []
        for part in parts:
            found += self._rows[part.row].add(part.tokens, part.wanted)
            assert len(self._rows[part.row].cells) <= self.n_ctx
            self.evaluated += len(part.tokens)
        return np.array(found, np.float32).reshape(len(found), VOCABULARY)

    def length(self, row: int) -> int:
        return len(self._rows[row].cells)

    def cut(self, row: int, length: int) -> int:
        del self._rows[row].cells[length:]
        return len(self._rows[row].cells)

    def copy(self, source: int, target: int, length: int) -> None:
        self._rows[target].cells = self._rows[source].cells[:length]
        self._rows[target].poisoned |= self._rows[source].poisoned

    def purge(self, row: int) -> None:
        self._rows[row].cells, self._rows[row].poisoned = [], False

    def close(self) -> None:
        assert not self._computing, "the engine is freed while it computes"
        self._closed = True


class ToyTokenizer:
    """A token a character; see `Tokenizer`."""

    has_template, eos_token, renders_tools = True, END, False

    def __init__(self, world: World) -> None:
        self.world = world

    def encode(self, text: str) -> list[int]:
        self.world.pause()
        return [ord(character) % END for character in text]

    encode_plain = encode

    def encode_messages(self, messages: Sequence[Any], tools: Any = None) -> tuple[list[int], list[str]]:
        return self.encode("".join(message["content"] for message in messages)), []

    def ends(self, token: int) -> bool:
        return token == END

    def data(self, token: int) -> bytes:
        return b"" if token == END else bytes([97 + token % 26])

    def detokenizer(self) -> Callable[[int], bytes]:
        return self.data


class ToyModel(Weights):
    """A model whose weights are nothing."""

    def __init__(self, world: World, bases: Bases, policy: Policy) -> None:
        self.world, self._tokenizer = world, ToyTokenizer(world)
        self._prepare(bases, policy)

    @property
    def chat_tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def longest(self) -> int:
        return N_CTX

    def engine(self, *, rows: int, n_ctx: int, n_threads: int, fewest: int = 1) -> Any:
        made = ToyEngine(self.world, rows, n_ctx)
        self._engines.add(made)
        return made

    def close(self) -> None:
        self._end_all()


class ToyDatabase:
    """A database before which others get on, and which fails before a call or, as a connection may, after."""

    def __init__(self, world: World, real: Any) -> None:
        self._world, self._real = world, real

    def read(self, *args: Any, **how: Any) -> Any:
        return self._call(self._real.read, *args, **how)

    def write(self, *args: Any, **how: Any) -> Any:
        return self._call(self._real.write, *args, **how)

    def close(self) -> None:
        self._real.close()

    def _call(self, function: Callable[..., Any], *args: Any, **how: Any) -> Any:
        self._world.pause()
        self._world.fail(StoreError)
        found = function(*args, **how)
        self._world.fail(StoreError)
        self._world.pause()
        return found


def alone(request: Request) -> list[Any]:
    """Return what a request is told where nobody else is there: pieces and the end, or the error."""
    told, row = list[Any](), Row()
    row.set_r(None if request.vector is None else request.vector.r)
    with suppress(BaseException):
        work = answering(request, ToyTokenizer(World(0)), N_CTX, told.append)
        while not work.over:
            held = len(row.cells)
            end = min(len(work.tokens), held // CHUNK * CHUNK + CHUNK)
            logits = row.add(work.tokens[held:end], int(end == len(work.tokens)))
            if logits:
                try:
                    work.take(logits[0][None])
                except BaseException as error:
                    work.finish(error)
                    raise
        work.finish(None)
    return told


def text_of(told: Sequence[Any]) -> tuple[str, Any]:
    """Return the text of pieces, and the tokens of their end or the kind of the error."""
    *pieces, end = told
    ended = end.tokens if isinstance(end, Finish) else type(end)
    return "".join(piece.text for piece in pieces), ended


def install(world: World, patch: Any) -> None:
    """Have pools and services made of what the world runs."""
    for name, kind in (("Loop", ToyLoop), ("Threads", ToyThreads)):
        made = type(name, (kind,), {"world": world})
        patch.setattr(pools, name, made)
        if name == "Threads":
            patch.setattr(services, name, made)
