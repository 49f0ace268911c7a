"""This process: the cores that it may use, how its threads wait, and what its first Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def first_interrupt(stop: Callable[[], object]) -> Iterator[None]:
    """Let the first Ctrl-C of a block call `stop`; a second one does as usual. In the main thread alone."""
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


SPIN = 10_000  # rounds before libgomp's threads sleep, a tenth of a millisecond; its default is 300,000
OPENMP_VARIABLES = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"  # how OpenMP's threads wait


def set_waiting() -> None:
    """Let OpenMP's threads spin briefly, in libraries loaded from now on; what the user has set stays.

    llama.cpp's threads meet after every operation, hundreds of times a token. Where other work wants the
    cores, the thread that is waited for is often not running, and the one that spins takes its time away.
    """
    if not any(name in os.environ for name in OPENMP_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN)
