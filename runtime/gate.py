"""The gate of a model: generations and exchanges of the vector take turns."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import BusyError


class Gate:
    """A lock that one thread holds at a time; the same thread may hold it again.

    A streaming generation holds it from its first token until it ends or is closed, whichever thread
    consumes it then. An exchange needs the model to itself: it waits for other threads, and refuses
    in the thread whose own generation is running, where waiting would never end.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._owner: int | None = None
        self._holds = 0
        self._running = 0
        self._computing = threading.RLock()
        self._depth = 0
        self._waiting: list[object] = []

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Hold the model while it generates."""
        self._acquire(wait=True, timeout=None, running=1)
        try:
            yield
        finally:
            self._release(running=1)

    @property
    def generating(self) -> bool:
        """Whether a generation is unfinished."""
        return self._running > 0

    @contextmanager
    def computing(self) -> Iterator[bool]:
        """Compute, one thread at a time; give whether this begins while a stream is unfinished.

        The thread becomes the holder: it may go on with a stream that another one began. Entered again
        inside itself, it is part of the same step.
        """
        with self._computing:
            with self._changed:
                self._owner = threading.get_ident()
            self._depth += 1
            try:
                yield self._depth == 1 and self._running > 1
            finally:
                self._depth -= 1

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the model for this thread's own generations and exchanges."""
        self._acquire(wait=True, timeout=None)
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def exchange(self, *, wait: bool = True, timeout: float | None = None) -> Iterator[None]:
        """Hold the model while no generation is running.

        Raises:
            BusyError: this thread's own generation is unfinished, or another thread holds the model
                and `wait` is False or `timeout` seconds have passed.
        """
        self._acquire(wait=wait, timeout=timeout)
        try:
            if self._running:
                raise BusyError(
                    "a generation that this thread started is unfinished: exhaust or close its stream "
                    "before exchanging the vector"
                )
            yield
        finally:
            self._release()

    def _acquire(self, *, wait: bool, timeout: float | None, running: int = 0) -> None:
        me = threading.get_ident()
        with self._changed:
            if not wait and self._owner != me and (self._holds or self._waiting):
                raise BusyError("a generation is running in another thread, and wait=False was asked for")
            if not (self._holds and self._owner == me):
                self._queue_up(timeout)
            self._owner = me
            self._holds += 1
            self._running += running

    def _queue_up(self, timeout: float | None) -> None:
        # First come, first served: a thread that exchanges in a loop must not starve the others.
        ticket = object()
        self._waiting.append(ticket)
        try:
            if not self._changed.wait_for(lambda: not self._holds and self._waiting[0] is ticket, timeout):
                raise BusyError(f"a generation in another thread did not end within {timeout} s")
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()

    def _release(self, *, running: int = 0) -> None:
        with self._changed:
            self._running -= running
            self._holds -= 1
            if not self._holds:
                self._owner = None
                self._changed.notify_all()
