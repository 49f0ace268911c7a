"""How soon a slot is free when its client leaves, and how streams end when the server is stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import _common as bench
from _servers import Server, events, load, pieces

TOKENS = 400  # of an answer, which is cut before its end
BEFORE = 8  # tokens that are timed before a client leaves

Body = Callable[[], dict[str, Any]]
"""Makes the body of the next request."""


def freed(server: Server, body: Body, rounds: int) -> dict[str, Any]:
    """Return, in pairs, the seconds of a token, and those from when its client leaves to a free slot."""
    tokens, free, ratios = [], [], []
    for _ in range(rounds):
        connection = server.connect()
        response = server.post(connection, body() | {"stream": True, "max_tokens": TOKENS})
        times = []
        for _ in pieces(response):
            times.append(time.perf_counter())
            if len(times) > BEFORE:
                break
        if len(times) <= BEFORE:
            raise SystemExit("a stream ended before its client could leave: ask for a longer answer")
        asking = server.connect()
        with bench.stopwatch() as watch:
            response.close()
            connection.close()
            while load(asking)[0]:
                pass
        asking.close()
        tokens.append((times[-1] - times[0]) / BEFORE)
        free.append(watch.seconds)
        ratios.append(watch.seconds / tokens[-1])
    return {"token": bench.summarize(tokens), "free": bench.summarize(free), "ratio": sorted(ratios)}


def stopped(server: Server, body: Callable[[int], dict[str, Any]], users: int) -> dict[str, Any]:
    """Stop the server while some users stream; return the seconds until its exit, and how streams ended."""
    ends: list[str] = []

    def one(user: int) -> None:
        response = server.post(server.connect(), body(user) | {"stream": True, "max_tokens": TOKENS})
        ends.append(deque(events(response), 1).pop())

    threads = [threading.Thread(target=one, args=(user,)) for user in range(users)]
    for thread in threads:
        thread.start()
    asking = server.connect()
    while sum(load(asking)) + len(ends) < users:  # all are answered, or wait for it
        time.sleep(0.01)
    asking.close()
    with bench.stopwatch() as watch:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait()
    for thread in threads:
        thread.join()
    with_reason = sum('"error"' in end for end in ends)
    return {
        "seconds": watch.seconds,
        "ended": ends.count("[DONE]"),
        "told why": with_reason,
        "streams": users,
    }
