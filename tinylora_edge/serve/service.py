"""The service behind the routes: which vector answers a request, what is counted, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..errors import RequestError, RollbackError, TinyLoraError
from ..runtime import SampledAnswer
from ..runtime.loop import Load
from ..runtime.pool import AnswerStream, Pool
from ..runtime.turns import Shares, Who
from .access import Access, Caller, Limits, RefusedError
from .bodies import Asked, read_frame
from .feedback import Feedback
from .store import Store, check_user

T = TypeVar("T")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
OPEN = "are open"
"""What the requests that have places do."""

_POLL_S = 0.05
_STORE_THREADS = 4  # they wait for its lock, for seconds: nobody else's may
_LONGEST_NAME = 65  # of a user who has a vector: 64, and one that says that this was no name


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"tinylora_{name}", about, labels, registry=own)

        def histogram(name: str, about: str, *labels: str) -> Histogram:
            return Histogram(f"tinylora_{name}_seconds", about, labels, buckets=_SECONDS, registry=own)

        self.requests = counter("requests", "Requests, by route and status.", "route", "status")
        self.seconds = histogram("request", "Seconds until the last byte of a response.", "route")
        self.first_token = histogram("first_token", "Seconds until the first piece of an answer.")
        self.tokens = counter("tokens", "Tokens of prompts, cached ones of these, and of answers.", "kind")
        self.refused = counter("refused_vectors", "Vectors that were refused, by reason.", "reason")
        self._running = Gauge("tinylora_running", "Answers that are being generated.", registry=own)
        self._waiting = Gauge("tinylora_waiting", "Answers that wait for a slot.", registry=own)

    def text(self, load: Load) -> bytes:
        """Return all of them in Prometheus's format, with the load of the moment."""
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        return generate_latest(self._registry)


class Service:
    """A pool with its users' vectors, for the routes of an app. Without a store clients bring theirs."""

    def __init__(
        self,
        pool: Pool,
        *,
        name: str,
        store: Store | None,
        access: Access,
        limits: Limits,
        feedback: Feedback | None = None,
    ) -> None:
        self.pool, self.name, self.store, self.limits = pool, name, store, limits
        self.access, self.feedback = access, feedback
        self.metrics = Metrics()
        self.places = Shares(limits.requests)
        self._storing = ThreadPoolExecutor(_STORE_THREADS, "tinylora-store")
        self._learning = ThreadPoolExecutor(1, "tinylora-clicks")  # a click takes seconds
        self.draining = False

    async def open(self, asked: Asked, *, caller: Caller, header: str) -> list[AnswerStream]:
        """Return the answers to a request, which have begun; `header` is a vector as text, or "".

        Raises:
            RefusedError: another user's vector, or one that the store has not, or another model.
            VectorError, RequestError, OverloadError, StoreError, TinyLoraError: see `Pool.chat`.
        """
        name, at, named = asked.model.partition("@")
        key_user = caller.user
        if name != self.name:
            raise RefusedError(
                404,
                f"there is no model {asked.model[:80]!r}: this server has {self.name!r}, and "
                f"{self.name}@USER for the vector of a user",
                "model_not_found",
                "model",
            )
        if at and key_user not in (None, check_user(named)):
            raise wrong_user(named)
        if asked.vector and header and asked.vector != header:
            raise RequestError("body and header have different vectors: send one of them", param="vector")
        who = caller.who_of(named, asked.user)
        self.places.move(caller.who, who, OPEN)
        caller.who = who
        if given := asked.vector or header:
            user = named or key_user or asked.user
            return await self._begin(asked, who, check_user(user) if user else "", read_frame(given))
        if not at:
            return await self._begin(asked, who, key_user or asked.user[:_LONGEST_NAME], None)
        frame = await self._stored(named)
        try:
            return await self._begin(asked, who, named, frame)
        except RollbackError:
            newer = await self._stored(named)
            if newer == frame:
                raise
            return await self._begin(asked, who, named, newer)  # it was replaced meanwhile

    def remember(self, name: str, streams: Sequence[AnswerStream]) -> None:
        """Remember the answers of a reply that have ended, where the server learns from clicks."""
        if self.feedback is None:
            return
        for index, stream in enumerate(streams):
            if stream.finish is not None and (asked := stream.request) is not None:
                temperature = asked.sampling.temperature
                given = SampledAnswer(asked.prompt, stream.finish.tokens, asked.vector, temperature)
                self.feedback.remember(f"{name}:{index}" if index else name, asked.user, given)

    async def drain(self, grace: float) -> None:
        """Take no more requests, give answers some seconds to end, and close: the rest ends with an error."""
        if self.draining:
            return
        self.draining = True
        until = asyncio.get_running_loop().time() + grace
        while asyncio.get_running_loop().time() < until:
            load = self.pool.load()
            if not load.running and not load.waiting:
                break
            await asyncio.sleep(_POLL_S)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close pool and store. Again is fine."""
        self.draining = True
        self.pool.close()
        if self.store is not None:
            self.store.close()

    async def in_turn(self, call: Callable[..., T], *args: Any) -> T:
        """Call what computes for seconds in a thread, after all that were called so before."""

        def unless_it_goes_down() -> T:
            if self.draining:
                raise _going_down()
            return call(*args)

        return await asyncio.get_running_loop().run_in_executor(self._learning, unless_it_goes_down)

    async def with_store(self, call: Callable[[Store], T]) -> T:
        """Call the store in a thread of its own. RefusedError: there is none."""
        store = self.store
        if store is None:
            raise RefusedError(404, "this server has no store: start it with --store", "no_store")
        return await asyncio.get_running_loop().run_in_executor(self._storing, call, store)

    async def _stored(self, user: str) -> bytes:
        found = None if self.store is None else await self.with_store(lambda store: store.get(user))
        if found is None:
            raise RefusedError(
                404,
                f"user {user!r} has no vector here: put one with PUT /v1/vectors/{user}, or ask for "
                f"{self.name!r}, the base",
                "model_not_found",
                "model",
            )
        return found.frame

    async def _begin(self, asked: Asked, who: Who, user: str, vector: bytes | None) -> list[AnswerStream]:
        if self.draining:
            raise _going_down()
        streams = [
            self.pool.stream(
                asked.prompt,
                raw=not asked.chat,
                user=user,
                tenant=who.tenant,
                account=who.account,
                vector=vector,
                choice=choice,
                **asked.options,
            )
            for choice in range(asked.choices)
        ]
        try:
            for stream in streams:
                await stream.start()
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        return streams


def wrong_user(user: str) -> RefusedError:
    """Return the error of a key that asks for another user than its own."""
    message = f"this API key does not stand for user {user!r}"
    return RefusedError(403, message, "wrong_user", kind="permission_error")


def _going_down() -> TinyLoraError:
    return TinyLoraError("the server is going down: ask again in a moment")
