"""The service behind the routes: whose request it is, which vector answers, what is counted, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..errors import RequestError, RollbackError, TinyLoraError
from ..runtime.feedback.given import Given
from ..runtime.pool.desk import AnswerStream
from ..runtime.pool.pool import Pool
from ..runtime.pool.request import Finish
from ..runtime.pool.scheduler import Load
from .access import ApiKeys, Limits, RefusedError
from .bodies import Asked, read_frame
from .editor import VectorEditor
from .feedback import Feedback
from .store import Store, check_user

T = TypeVar("T")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_POLL_S = 0.05
_MOST_NAMED = 128  # characters of an end user's id that tell users apart


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "tinylora_requests", "Requests, by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "tinylora_request_seconds",
            "Seconds until the last byte of a response.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "tinylora_first_token_seconds",
            "Seconds until the first piece of an answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "tinylora_tokens",
            "Tokens: of prompts, of prompts that a cache had, and of answers.",
            ["kind"],
            registry=registry,
        )
        self._refused = Counter(
            "tinylora_refused_vectors", "Vectors that were refused, by reason.", ["reason"], registry=registry
        )
        self._running = Gauge("tinylora_running", "Answers that are being generated.", registry=registry)
        self._waiting = Gauge("tinylora_waiting", "Answers that wait for a slot.", registry=registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that is over."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Note how long the first piece of an answer took."""
        self._first.observe(seconds)

    def answer(self, finish: Finish) -> None:
        """Count the tokens of an answer."""
        self._tokens.labels("prompt").inc(finish.prompt_tokens)
        self._tokens.labels("cached").inc(finish.cached_tokens)
        self._tokens.labels("completion").inc(finish.completion_tokens)

    def refused_vector(self, reason: str) -> None:
        """Count a vector that was refused."""
        self._refused.labels(reason).inc()

    def text(self, load: Load) -> bytes:
        """Return all of them in Prometheus's format, with the load of the moment."""
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        return generate_latest(self._registry)


class Service:
    """A pool with its users' vectors, for the routes of an app.

    Args:
        pool: that answers.
        name: of the model, as clients ask for it.
        store: of users' vectors; None for a server whose clients bring theirs along.
        keys: that are taken; None for a server that asks for none.
        limits: of every client.
    """

    def __init__(
        self, pool: Pool, *, name: str, store: Store | None, keys: ApiKeys | None, limits: Limits
    ) -> None:
        self.pool, self.name, self.store, self.limits = pool, name, store, limits
        self.metrics = Metrics()
        self._keys = keys
        # Learning takes seconds, and would otherwise hold the threads that look-ups and answers need.
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="slow")
        self._hosts: frozenset[str] | None = None
        self.feedback: Feedback | None = None
        self.editor: VectorEditor | None = None  # of the page, where there is one
        self.draining = False

    def trust(self, *hosts: str) -> None:
        """Take requests to these hosts alone, where no key is asked for or there is a page.

        A web page whose name leads to 127.0.0.1 would otherwise be taken for this server's own.
        """
        self._hosts = frozenset(hosts)

    def authorize(self, headers: Mapping[str, str]) -> str | None:
        """Return the user that a request's key stands for; None for any.

        Raises:
            RefusedError: the key is none that this server takes, or there is none, and the request is to
                another host; or there is a page, and the request is from another one.
        """
        if self.editor is not None:
            self.check_origin(headers)
        if self._keys is not None:
            return self._keys.user_of(headers.get("authorization", ""))
        self._check_host(headers)
        return None

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse what a browser sends for another site than the page's own.

        Raises:
            RefusedError: the request is to another host, or from a page of somebody else's.
        """
        self._check_host(headers)
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and origin != f"http://{host}":
            message = f"this server answers its own page alone, and no page of {origin[:80]!r}"
            raise RefusedError(403, message, "wrong_origin", "origin", kind="permission_error")

    def _check_host(self, headers: Mapping[str, str]) -> None:
        host = None
        with suppress(ValueError):  # brackets that do not match
            host = urlsplit(f"//{headers.get('host', '')}").hostname
        if self._hosts is not None and host not in self._hosts:
            message = f"this server is not {str(host)[:80]!r}: ask it as {', '.join(sorted(self._hosts))}"
            raise RefusedError(403, message, "wrong_host", kind="permission_error")

    async def open(self, asked: Asked, *, key_user: str | None, header: str) -> list[AnswerStream]:
        """Return the answers to a request, which have begun.

        Args:
            asked: what the body asks for.
            key_user: that the request's key stands for.
            header: a vector as text; empty for none.

        Raises:
            RefusedError: another user's vector, or one that the store has not, or another model.
            VectorError: the vector was refused; the subclass says why.
            RequestError, OverloadError, StoreError, TinyLoraError: see `Pool.chat`.
        """
        name, at, named = asked.model.partition("@")
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
        given = self._given(asked.vector, header)
        if given is None and not at:
            return await self._begin(asked, key_user or asked.user[:_MOST_NAMED], None)
        user = named or key_user or asked.user
        if given is not None:
            return await self._begin(asked, check_user(user) if user else "", given)
        frame = await self._stored(named)
        try:
            return await self._begin(asked, named, frame)
        except RollbackError:
            newer = await self._stored(named)
            if newer == frame:
                raise
            return await self._begin(asked, named, newer)  # it was replaced meanwhile

    def remember(self, name: str, streams: Sequence[AnswerStream]) -> None:
        """Remember the answers of a reply that have ended, where the server learns from clicks."""
        if self.feedback is None:
            return
        for index, stream in enumerate(streams):
            if stream.finish is not None and (asked := stream.request) is not None:
                temperature = asked.sampling.temperature
                given = Given(asked.prompt, stream.finish.tokens, asked.vector, temperature)
                self.feedback.remember(f"{name}:{index}" if index else name, asked.user, given)

    async def drain(self, grace: float) -> None:
        """Take no more requests, let those that are answered end, and close what is left after some seconds.

        What is left ends with an error that says so.
        """
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
        """Close pool and store. What waits for its turn ends with an error. Again is fine."""
        self.draining = True
        self._slow.shutdown(wait=False, cancel_futures=True)
        self.pool.close()
        if self.store is not None:
            self.store.close()

    async def in_turn(self, call: Callable[..., T], *args: Any) -> T:
        """Call what computes for seconds, after all that were called so before.

        Raises:
            TinyLoraError: the server is going down.
            Those of the call.
        """
        if self.draining:
            raise _going_down()
        future = self._slow.submit(call, *args)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise _going_down() from None  # `close` took it out of the queue

    async def with_store(self, call: Callable[[Store], Any]) -> Any:
        """Call the store in a thread.

        Raises:
            RefusedError: there is none.
            Those of the call.
        """
        store = self.store
        if store is None:
            raise RefusedError(404, "this server has no store: start it with --store", "no_store")
        return await asyncio.to_thread(call, store)

    def _given(self, body: str, header: str) -> bytes | None:
        """Return the vector that a request brings along."""
        if body and header and body != header:
            raise RequestError("body and header have different vectors: send one of them", param="vector")
        if not body and not header:
            return None
        return read_frame(body or header)

    async def _stored(self, user: str) -> bytes:
        found = None
        if self.store is not None:
            found = await asyncio.to_thread(self.store.get, user)
        if found is None:
            raise RefusedError(
                404,
                f"user {user!r} has no vector here: put one with PUT /v1/vectors/{user}, or ask for "
                f"{self.name!r}, the base",
                "model_not_found",
                "model",
            )
        return found.frame

    async def _begin(self, asked: Asked, user: str, vector: bytes | None) -> list[AnswerStream]:
        if self.draining:
            raise _going_down()
        streams = [
            self.pool.stream(
                asked.prompt, raw=not asked.chat, user=user, vector=vector, choice=choice, **asked.options
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


def _going_down() -> TinyLoraError:
    return TinyLoraError("the server is going down: ask again in a moment")


def wrong_user(user: str) -> RefusedError:
    """Return the error of a key that asks for another user than its own."""
    return RefusedError(
        403, f"this API key does not stand for user {user!r}", "wrong_user", kind="permission_error"
    )
