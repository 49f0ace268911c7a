"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..runtime.pool.request import Finish
from ..runtime.pool.scheduler import Load

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


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
