"""Whatever comes, everybody who stays is answered or told why: seeds, one after the other.

    python tests/simulation/campaign.py --seconds 60
    python tests/simulation/campaign.py --seed 7

A seed makes the numbers of rows and accounts, what clients ask for and when they leave, what fails, and who
gets on next. One that fails is printed, and belongs into test_simulation.py.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import support
from simulation.world import FAULT, N_CTX, NOT_FINITE, ToyDatabase, ToyModel, World, alone, install, text_of

from tinylora_edge import Bases, Hmac, MicroVector, Policy
from tinylora_edge.errors import OverloadError, RollbackError, TinyLoraError, VectorError
from tinylora_edge.runtime.pool import AnswerStream, Pool
from tinylora_edge.runtime.turns import Who
from tinylora_edge.serve.access import Limits
from tinylora_edge.serve.service import Service
from tinylora_edge.serve.store import Store, Stored

KEY = Hmac(bytes(range(32)))
TURNS = 400_000  # of a seed: many times what any takes


@dataclass
class Written:
    """What is known of a user's vector in the store.

    Attributes:
        tried: frames that were put, by sequence.
        known: the highest sequence whose `put` returned.
        deletes, ended: calls of `delete` that clients made, and those that the store ended.
        before: of these, how many had ended when that `put` began.
    """

    tried: dict[int, bytes] = field(default_factory=dict)
    known: int = 0
    deletes: int = 0
    ended: int = 0
    before: int = 0

    @property
    def now(self) -> tuple[int, int]:
        """What a read that begins now may rely on."""
        return self.known, self.before

    def check(self, sequence: int | None, then: tuple[int, int]) -> None:
        """Compare the sequence that a read found with what was known when it began."""
        known, before = then
        if sequence is None:
            assert not known or self.deletes > before, "an acknowledged vector is gone"
        else:
            assert sequence >= known, "an older vector came back"


class Clients:
    """Clients of one server, and what they may expect."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.chance = world, world.chance
        basis = support.random_basis(1, rank=2)
        self.basis, self.bases, self.path = basis, Bases(basis.factors, (basis.projection,)), folder / "users"
        self.users = [f"user{n}" for n in range(self.chance.randint(1, 8))]
        self.accounts = [f"app{n}" for n in range(self.chance.randint(1, 5))]
        self.vectors = [support.of_norm(basis, 0.5, seed=n) for n in range(3)]
        self.vectors.append(support.of_norm(basis, NOT_FINITE * 20, seed=9))
        self.written = {user: Written() for user in self.users}
        self.asked = dict[tuple[str, bytes], list[tuple[int, ...]]]()  # prompts, by tenant and R
        self.requests = self.answers = self.refused = 0
        self.slots = self.chance.choice([1, 2, 3, 5, 8, 16, 33, 64])
        self.waiting = self.chance.choice([4, 30, 300])
        self.begin()

    def begin(self) -> None:
        """Start the server over the store's file."""
        store = Store(self.path, self.bases)
        store._database = ToyDatabase(self.world, store._database)
        policy = Policy(keys=[KEY], state=store.sequences, max_norm=float("inf"))
        self.model: Any = ToyModel(self.world, self.bases, policy)
        pool = Pool(self.model, slots=self.slots, n_ctx=N_CTX, waiting=self.waiting)
        self.service = Service(pool, "toy", store, None, Limits(requests=self.waiting), None, None)

    def end(self, *, crash: bool) -> None:
        """End the server: in order, or as a crash does, after which nothing of it gets on."""
        world, service = self.world, self.service
        if not crash:
            service.close()
            self.model.close()
        world.loops.clear()
        world.threads.clear()
        if crash:
            service.store._database.close()

    # What clients do

    async def client(self) -> None:
        """Send a few requests, one after the other."""
        chance = self.chance
        who = chance.choice(self.accounts), chance.choice(self.users)
        for _ in range(chance.randint(1, 4)):
            await asyncio.sleep(chance.choice([0, 0.01, 0.3]))
            kind = chance.choice([self.ask, self.ask, self.ask, self.put, self.get, self.delete])
            doing = asyncio.create_task(kind(*who))
            doing.add_done_callback(lambda task: task.cancelled() or task.exception())  # a crash leaves it
            leaves = chance.random() < 0.4
            self.requests += 1
            done, _ = await asyncio.wait(
                [doing], timeout=chance.random() * chance.choice([0.02, 0.1, 1]) if leaves else None
            )
            if not done:
                doing.cancel()
                await asyncio.wait([doing])
            if not doing.cancelled() and (error := doing.exception()) is not None:
                self.allowed(error)

    def allowed(self, error: BaseException) -> None:
        """Check that an error is one that the client may get, and says why."""
        self.refused += 1
        expected = isinstance(error, OverloadError | RollbackError) or FAULT in str(error)
        going = self.service.draining or "closed" in str(error) or "going down" in str(error)
        assert expected or (isinstance(error, TinyLoraError) and going), repr(error)

    async def ask(self, account: str, user: str) -> None:
        """Ask for answers; read them whole, slowly, or in part."""
        chance, service = self.chance, self.service
        tenant = chance.choice([user, user, "house", ""])
        vector: Any = chance.choice([None, *self.vectors])
        if chance.random() < 0.2:
            written = self.written[user]
            then, policy = written.now, service.pool.policy
            vector = await service.with_store(Who(account, user), lambda s: s.admitted(user, policy))
            written.check(None if vector is None else vector.sequence, then)
        if isinstance(vector, MicroVector) and chance.random() < 0.2:
            vector = [self.vectors[0], vector]
        prompt = (
            chance.choice("abc") * chance.choice([1, 20, 63, 64, 65, 130, 300])
            + "xyz"[: chance.randint(0, 3)]
        )
        how: dict[str, Any] = {"seed": chance.randrange(9), "temperature": chance.choice([0.0, 1.0])}
        how |= {"max_tokens": chance.randint(1, 30), "user": user, "tenant": tenant, "account": account}
        streams = await service.pool.streams(prompt, chance.choice([1, 1, 1, 3]), vector=vector, **how)
        told = await asyncio.gather(*map(self.read, streams), return_exceptions=True)
        for stream, heard in zip(streams, told, strict=True):
            self.check(stream, heard)

    async def read(self, stream: AnswerStream) -> list[Any] | None:
        """Return what a stream tells; None where the client leaves it."""
        most = self.chance.choice([None, None, None, 3])
        slow, heard = self.chance.random() < 0.2, list[Any]()
        async for piece in stream:
            heard.append(piece)
            if slow:
                await asyncio.sleep(0.05)
            if most is not None and len(heard) == most:
                stream.close()
                return None
        return [*heard, stream.finish]

    def check(self, stream: AnswerStream, heard: list[Any] | BaseException | None) -> None:
        """Compare an answer with that of the same request alone."""
        request = stream.request
        if heard is None or request is None:
            return
        key = request.who.tenant, b"" if request.vector is None else request.vector.digest
        if isinstance(heard, BaseException):
            if isinstance(heard, VectorError):
                assert text_of(alone(request))[1] is type(heard)
            else:
                self.allowed(heard)
            return
        assert text_of(heard) == text_of(alone(request)), "who else is there changes an answer"
        self.answers += 1
        others = [*self.asked[key]]
        others.remove(request.prompt)  # its own
        shared = max((_alike(request.prompt, other) for other in others), default=0)
        assert heard[-1].cached_tokens <= (shared if request.who.tenant else 0), "another's tokens"

    async def put(self, account: str, user: str) -> None:
        """Store a newer vector, or now and then an older one."""
        written, service = self.written[user], self.service
        sequence = max(written.tried, default=0) + self.chance.randint(1, 3)
        vector = support.of_norm(self.basis, 0.5, seed=sequence, sequence=sequence)
        frame = written.tried[sequence] = vector.to_bytes(self.basis, KEY, user=user)
        ended, policy = written.ended, service.pool.policy
        await service.with_store(Who(account, user), lambda store: store.put(user, frame, policy))
        if sequence > written.known:
            written.known, written.before = sequence, ended

    async def get(self, account: str, user: str) -> None:
        """Read a vector."""
        written = self.written[user]
        then = written.now
        found = await self.service.with_store(Who(account, user), lambda store: store.get(user))
        self.check_found(found, written, then)

    async def delete(self, account: str, user: str) -> None:
        """Delete a vector."""
        written = self.written[user]
        written.deletes += 1

        def delete(store: Store) -> bool:
            found = store.delete(user)
            written.ended += 1
            return found

        await self.service.with_store(Who(account, user), delete)

    @staticmethod
    def check_found(found: Stored | None, written: Written, then: tuple[int, int]) -> None:
        """Compare a stored vector with what was known when it was asked for."""
        written.check(None if found is None else found.sequence, then)
        assert found is None or written.tried[found.sequence] == found.frame

    # What is left

    def check_left(self) -> None:
        """Compare the store with what was acknowledged, and see that nobody holds anything."""
        pool, world = self.service.pool, self.world
        assert pool.busy() == (0, 0)
        loop = pool._loop
        assert (loop._rows._free, dict(loop._rows._taken), dict(loop._rows._tokens)) == (self.slots, {}, {})
        for threads in world.threads:
            assert not threads._calls
            assert not threads._queue
            assert not threads._running._taken
        assert not asyncio.all_tasks(world.clock)
        assert not world.failures, world.failures

    def check_stored(self) -> None:
        """Compare a new reader of the file with what was acknowledged."""
        store = Store(self.path, self.bases)
        for user, written in self.written.items():
            self.check_found(store.get(user), written, written.now)
            if written.known:
                assert (store.last(user) or 0) >= written.known, "a sequence is forgotten"
        store.close()


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many first tokens two prompts share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def simulate(seed: int, folder: Path) -> Clients:
    """Run a seed: a few lives of a server. AssertionError: something does not hold."""
    world = World(seed)
    with pytest.MonkeyPatch.context() as patch:
        install(world, patch)
        clients = Clients(world, folder)
        submit = AnswerStream._submit

        def noting(stream: AnswerStream, request: Any, streams: Any, loop: Any) -> None:
            try:
                submit(stream, request, streams, loop)
            finally:  # where too many wait, some of the choices may have begun
                if (made := stream.request) is not None:
                    key = made.who.tenant, b"" if made.vector is None else made.vector.digest
                    prompts = clients.asked.setdefault(key, [])
                    prompts += [made.prompt] * len(streams)  # a choice may reuse what another one evaluated

        patch.setattr(AnswerStream, "_submit", noting)
        lives = world.chance.choice([1, 1, 2, 3])
        for life in range(lives):
            tasks = [
                world.clock.create_task(clients.client()) for _ in range(world.chance.choice([2, 20, 80]))
            ]
            if life == lives - 1:
                world.run(lambda tasks=tasks: all(task.done() for task in tasks), TURNS)
                for task in tasks:
                    task.result()
                world.run(
                    lambda: clients.service.pool.busy() == (0, 0) and not asyncio.all_tasks(world.clock),
                    TURNS,
                )
                clients.check_left()
                clients.end(crash=False)
                break
            over = world.turns + world.chance.randint(1, 3000)
            world.run(
                lambda over=over, tasks=tasks: world.turns >= over or all(t.done() for t in tasks), TURNS
            )
            crash = world.chance.random() < 0.5
            clients.end(crash=crash)
            if crash:  # nobody is answered any more
                for task in asyncio.all_tasks(world.clock):
                    task.cancel()
            world.run(lambda: not asyncio.all_tasks(world.clock), TURNS)
            for task in tasks:
                if not task.cancelled():
                    task.result()
            clients.check_stored()
            clients.begin()
        clients.check_stored()
    world.clock.close()
    return clients


def main() -> None:
    """Run seeds until the time is over, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, help="this one alone")
    asked = parser.parse_args()
    began, seed = time.monotonic(), asked.seed or int(time.time()) * 1000
    seeds = requests = answers = steps = faults = 0
    while not seeds or (asked.seed is None and time.monotonic() - began < asked.seconds):
        with tempfile.TemporaryDirectory() as folder:
            try:
                clients = simulate(seed, Path(folder))
            except BaseException:
                print(f"seed {seed} fails: python {sys.argv[0]} --seed {seed}", flush=True)
                raise
        seeds, seed, steps = seeds + 1, seed + 1, steps + clients.world.steps
        requests, answers = requests + clients.requests, answers + clients.answers
        faults += clients.world.faults
    rate = requests / (time.monotonic() - began)
    print(
        f"simulation: {seeds:,} seeds, {requests:,} requests ({rate:,.0f} a second), {answers:,} whole "
        f"answers, {steps:,} steps, {faults:,} faults: all hold"
    )


if __name__ == "__main__":
    main()
