"""The thread that computes with a model's own llama.cpp context: calls and streams of one model, in turn.

`llama_cpp.Llama` has one sequence, and generates it in a loop of its own, with all of its options. Each call
is a job, first come, first served, and so is each stream.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from ...errors import BusyError, TinyLoraError
from ..engine import CLOSED, INSIDE, Process

T = TypeVar("T")

_AT_EXIT = 2.0  # seconds that the end of the process waits for a callback that does not return


class Job:
    """A call for a worker. `cancelled` asks it to end at the next token."""

    def __init__(self, call: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        self.call, self.done, self.cancelled = call, done, False


class Cancelled(Exception):  # noqa: N818 - it ends a generation that nobody wants any more
    """The job's reader has left."""


class Worker:
    """One daemon thread and its queue. Any thread may use it; it does not keep the model alive."""

    def __init__(self) -> None:
        self._process = Process()
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._now: Job | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def inside(self) -> bool:
        """Whether this is a part of the job of the moment."""
        self._process.check()
        return self._now is not None and threading.current_thread() is self._thread

    def check_waiting(self) -> None:
        """Raise a `BusyError` in a callback of a generation, which would wait for itself."""
        if self.inside:
            raise BusyError(INSIDE)

    def check(self) -> None:
        """End the job of the moment where it was cancelled, or the worker was closed."""
        if self._now is not None and self._now.cancelled:
            raise Cancelled

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn. TinyLoraError: the model is closed, or this process is a fork."""
        self._process.check()
        with self._changed:
            if self._closed:
                raise TinyLoraError(CLOSED)
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tinylora-llama", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def run(self, call: Callable[[], T]) -> T:
        """Call in turn, and return what it returns; a call of the job of the moment is a part of that."""
        if self.inside:
            return call()
        ended: SimpleQueue[tuple[T, BaseException | None]] = SimpleQueue()
        job = Job(call, lambda result, error: ended.put((result, error)))
        self.submit(job)
        try:
            result, error = ended.get()
        except BaseException:  # Ctrl-C
            job.cancelled = True
            raise
        if error is not None:
            raise error
        return result

    def close(self) -> bool:
        """End everything at the next token; return whether it has ended: at exit a callback may prevent it.

        BusyError: this is a callback of a generation.
        """
        if self._process.forked:
            return False
        self.check_waiting()
        with self._changed:
            self._closed = True
            left = [*self._jobs]
            self._jobs.clear()
            if self._now is not None:
                self._now.cancelled = True
            self._changed.notify_all()
        for job in left:
            job.done(None, TinyLoraError(CLOSED))
        if self._thread in (None, threading.current_thread()):  # which drops the model's last reference
            return True
        self._thread.join(None if threading.main_thread().is_alive() else _AT_EXIT)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    if self._closed:
                        return
                    self._changed.wait()
                job = self._now = self._jobs.popleft()
            result: Any = None
            error: BaseException | None = None
            try:
                if not job.cancelled:
                    result = job.call()
            except Cancelled:
                error = TinyLoraError(CLOSED)
            except BaseException as raised:
                error = raised
            with self._changed:
                self._now = None
            job.done(result, error)
            del job, result, error  # the worker keeps no model; it may close one that nobody else has
