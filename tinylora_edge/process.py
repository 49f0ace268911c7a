"""Settings of this process: its cores, how its threads wait, and what Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def first_interrupt(stop: Callable[[], object]) -> Iterator[None]:
    """Have the first Ctrl-C during a block call `stop`; the second one does what it did before the block.

    In any other thread than the main one, Ctrl-C stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SPIN = 10_000  # rounds, a tenth of a millisecond, after which libgomp's threads sleep; its default is 300,000
OPENMP_VARIABLES = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"  # each says how OpenMP's threads wait


def set_waiting() -> None:
    """Let OpenMP's threads spin only briefly before they sleep, in libraries that are loaded from now on.

    A variable that the user has set stays. llama.cpp's threads wait for each other after every operation,
    hundreds of times a token. Where other work wants the cores, a thread that spins takes processor time from
    the thread that it waits for.
    """
    if not any(name in os.environ for name in OPENMP_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN)
