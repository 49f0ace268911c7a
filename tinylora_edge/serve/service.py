"""What the routes share: pool, store, threads and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..errors import TinyLoraError
from ..runtime.loop import Busy
from ..runtime.pool import Pool
from ..runtime.turns import Shares, Threads, Who
from ..vector import MicroVector
from .access import ApiKeys, Limits, RefusedError
from .feedback import Feedback
from .store import Store

T = TypeVar("T")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)  # buckets of histograms
_STORE_THREADS = 4  # threads of their own, as calls of the store may wait seconds for its lock
_WRITE_THREADS = 2  # an account may use one of them, so that its replies do not block those of others
_GOING_DOWN = "the server is going down: ask again in a moment"


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
        self.first_token = histogram("first_token", "Seconds until the first piece of a stream.")
        self.tokens = counter("tokens", "Tokens of prompts, cached ones of these, and of answers.", "kind")
        self.refused = counter("refused_vectors", "Vectors that were refused, by reason.", "reason")
        self._running = Gauge("tinylora_running", "Answers that are being generated.", registry=own)
        self._waiting = Gauge("tinylora_waiting", "Answers that wait for a slot.", registry=own)

    def text(self, busy: Busy) -> bytes:
        """Return all metrics in Prometheus's format; `busy` are the pool's present counts."""
        self._running.set(busy.running)
        self._waiting.set(busy.waiting)
        return generate_latest(self._registry)


@dataclass(eq=False)
class Service:
    """What an app's routes share: pool, store, limits, metrics, threads.

    Attributes:
        store: None where clients send vectors along.
        api_keys: those that are accepted; None: no key is needed.
        feedback: None where the server does not learn from clicks.
        under: the vector beneath every user's, but not beneath the base; None: there is none.
        hosts: names, one of which requests without a key must be addressed to; empty for any. They keep out
            web pages whose own name is made to lead to 127.0.0.1 (DNS rebinding).
        leaving: the server is about to go down, which `/health` says; requests are still taken.
        draining: the server goes down, and takes no more requests.
    """

    pool: Pool
    name: str
    store: Store | None
    api_keys: ApiKeys | None
    limits: Limits
    feedback: Feedback | None
    under: MicroVector | None
    hosts: frozenset[str] = frozenset()
    leaving: bool = False
    draining: bool = False

    def __post_init__(self) -> None:
        self.metrics, self.places = Metrics(), Shares(self.limits.requests)
        most = self.limits.requests
        self._storing = Threads(_STORE_THREADS, most, "tinylora-store", _GOING_DOWN)
        self._writing = Threads(_WRITE_THREADS, most, "tinylora-replies", _GOING_DOWN)
        self._learning = Threads(1, most, "tinylora-clicks", _GOING_DOWN)  # a click takes all cores

    def close(self) -> None:
        """Close pool and store. Again is fine."""
        self.draining = True
        self._learning.close()
        self.pool.close()
        self._writing.close()
        self._storing.close()
        if self.store is not None:
            self.store.close()

    async def learn(self, who: Who, call: Callable[..., T], *args: Any) -> T:
        """Learn from a click in the thread for clicks, where accounts take turns. OverloadError: too many
        wait."""
        if self.draining:
            raise going_down()
        return await asyncio.wrap_future(self._learning.submit(who, partial(call, *args)))

    async def write(self, who: Who, call: Callable[[], bytes]) -> bytes:
        """Make a long reply in a thread for replies, where accounts take turns. OverloadError: too many
        wait."""
        return await asyncio.wrap_future(self._writing.submit(who, call))

    async def with_store(self, who: Who, call: Callable[[Store], T]) -> T:
        """Call the store in one of its threads, where accounts take turns. RefusedError: there is none."""
        store = self.store
        if store is None:
            raise RefusedError(404, "this server has no store: start it with --store", "no_store")
        return await asyncio.wrap_future(self._storing.submit(who, partial(call, store)))


def wrong_user(user: str) -> RefusedError:
    """Return the error of a request whose API key stands for another user."""
    return RefusedError(403, f"this API key does not stand for user {user!r}", "wrong_user")


def going_down() -> TinyLoraError:
    """Return the error of a request that comes while the server goes down."""
    return TinyLoraError(_GOING_DOWN)
