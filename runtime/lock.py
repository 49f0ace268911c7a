"""The lock of a model, and the streams that hold it.

One at a time has the model: a call, an exchange of the vector, or a stream from its first step until it
ends, is closed or is dropped. Whoever else wants it waits, in turn; a thread that would wait for itself,
because the stream that has the model took its last step there, gets a `BusyError`. What a `using` block's
context calls (`contextvars`, so that `asyncio.to_thread` belongs to it too) and the streams made in it take
turns within the block, and everybody else waits until it ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from ..errors import BusyError, TinyLoraError

_POLL = 0.2  # seconds: what the garbage collector gives back in the midst of a look is seen then

_INSIDE = "the model is in the midst of a generation of this thread: do this after it has ended"
_OWN = (
    "a stream or a block of this thread has the model, and waiting for it would keep it from ending: exhaust "
    "or close it first (in asyncio, let tasks take turns, or use a Pool)"
)
_ENDED = "the `using` block that this belongs to has ended"
CLOSED = "the model is closed: load it again"


class Process:
    """The process of an engine: a fork of it has none of the engine's threads, and would hang."""

    _getpid = staticmethod(os.getpid)  # bound early: when the interpreter ends, globals go before models do

    def __init__(self) -> None:
        self._id = self._getpid()

    @property
    def forked(self) -> bool:
        """Whether this is another process, which was forked since."""
        return self._getpid() != self._id

    def check(self) -> None:
        """Refuse to go on in a fork.

        Raises:
            TinyLoraError: this process was forked from the one that loaded the engine.
        """
        if self.forked:
            raise TinyLoraError(
                f"the model was loaded in process {self._id}, and this is {self._getpid()}, which was forked "
                "from it without the engine's threads: load the model after the fork, or start processes "
                "with multiprocessing's `spawn`"
            )


class Scope:
    """What takes turns: the model, or the model as a `using` block has it."""

    def __init__(self) -> None:
        self.open = True
        self.taken = False
        self.thread: int | None = None  # that had it last, which could only wait for itself
        self.waiting: deque[object] = deque()


_scopes: ContextVar[tuple[tuple[ModelLock, Scope], ...]] = ContextVar("tinylora_scopes", default=())


class ModelLock:
    """The lock of one model; see above.

    Attributes:
        closed: nothing may begin any more.
    """

    _ident = staticmethod(threading.get_ident)

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._root = Scope()
        self._computing: int | None = None  # the thread that is inside a step
        self._process = Process()
        self._streams: WeakSet[Stream] = WeakSet()
        self.closed = False

    @property
    def gone(self) -> bool:
        """Whether there is nothing to close: it is closed, or this process is a fork, which frees nothing."""
        return self.closed or self._process.forked

    @property
    def busy(self) -> bool:
        """Whether another thread is inside a step."""
        return self._computing not in (None, self._ident())

    @property
    def inside(self) -> bool:
        """Whether this thread is inside a step, of which whatever it calls is a part."""
        self._process.check()
        return self._computing == self._ident()

    def check_open(self) -> None:
        """Refuse to go on with a closed model, or in a fork."""
        self._process.check()
        if self.closed:
            raise TinyLoraError(CLOSED)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Have the model for one call; inside a step it is a part of that."""
        if self.inside:
            yield
            return
        with self.exchange():
            yield

    @contextmanager
    def exchange(self, *, wait: bool = True, timeout: float | None = None) -> Iterator[None]:
        """Have the model while no generation is unfinished.

        Raises:
            BusyError: this thread's own generation is unfinished, or another one has the model and `wait` is
                False or `timeout` seconds have passed.
        """
        if self.inside:
            raise BusyError(_INSIDE)
        scope = self.scope()
        self.take(scope, wait=wait, timeout=timeout)
        try:
            with self.step(scope):
                yield
        finally:
            self.give(scope)

    @contextmanager
    def block(self) -> Iterator[Scope]:
        """Have the model for a block, in which generations and exchanges of its context take turns."""
        if self.inside:
            raise BusyError(_INSIDE)
        outer, inner = self.scope(), Scope()
        self.take(outer)
        try:
            _scopes.set((*(each for each in _scopes.get() if each[1].open), (self, inner)))
            yield inner
        finally:
            inner.open = False
            self.give(outer)

    @contextmanager
    def emptied(self, scope: Scope) -> Iterator[None]:
        """Compute, once nothing goes on within a block any more; its streams are ended."""
        scope.open = False
        with self._alone(scope, BusyError(_ENDED)):
            yield

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Have the model for the last time: whoever waits for it, or comes later, is refused.

        Raises:
            BusyError: this thread is inside a step.
        """
        if self.inside:
            raise BusyError(_INSIDE)
        self.closed = True
        with self._alone(None, TinyLoraError(CLOSED)):
            yield

    @contextmanager
    def step(self, scope: Scope) -> Iterator[None]:
        """Compute for what has a scope."""
        with self._changed:
            while self.busy:  # it ends what had the scope before
                self._changed.wait(_POLL)
            self.check_open()
            if not scope.open:
                raise BusyError(_ENDED)
            scope.thread = self._ident()
            outer, self._computing = self._computing, scope.thread
        try:
            yield
        finally:
            with self._changed:
                self._computing = outer
                self._changed.notify_all()

    def scope(self) -> Scope:
        """Return what this context is within: the innermost open block, or the model."""
        return next(
            (each for lock, each in reversed(_scopes.get()) if lock is self and each.open), self._root
        )

    def take(self, scope: Scope, *, wait: bool = True, timeout: float | None = None) -> None:
        """Wait for a scope, in turn; errors as for `exchange`."""
        ticket, until = object(), None if timeout is None else time.monotonic() + timeout
        with self._changed:
            scope.waiting.append(ticket)
            try:
                while scope.taken or scope.waiting[0] is not ticket:
                    self.check_open()
                    if not scope.open:
                        raise BusyError(_ENDED)
                    if scope.taken and scope.thread == self._ident():
                        raise BusyError(_OWN)
                    if not wait:
                        raise BusyError("the model is in use by another thread, and wait=False was asked for")
                    left = _POLL if until is None else min(_POLL, until - time.monotonic())
                    if left <= 0:
                        raise BusyError(f"another thread did not let go of the model within {timeout} s")
                    self._changed.wait(left)
                self.check_open()
                scope.taken, scope.thread = True, self._ident()
            finally:
                scope.waiting.remove(ticket)
                self._changed.notify_all()

    def give(self, scope: Scope) -> None:
        """Give a scope back."""
        with self._changed:
            scope.taken = False
            self._changed.notify_all()

    def stream(self, steps: Generator[Any, Any, Any]) -> Stream:
        """Return a generator as a stream of this model."""
        stream = Stream(steps, self)
        self._streams.add(stream)
        return stream

    @contextmanager
    def _alone(self, scope: Scope | None, error: TinyLoraError) -> Iterator[None]:
        with self._changed:
            self._changed.notify_all()
            while self.busy:
                self._changed.wait(_POLL)
            outer, self._computing = self._computing, self._ident()
        try:
            for stream in list(self._streams):
                stream.end(scope, error)
            yield
        finally:
            with self._changed:
                self._computing = outer
                self._changed.notify_all()


class Stream(Generator[Any, Any, None]):
    """A generation in the hands of its consumer, which steps it in any thread."""

    def __init__(self, steps: Generator[Any, Any, Any], lock: ModelLock) -> None:
        self._steps, self._lock = steps, lock
        self._scope = lock.scope()
        self._begun = self._over = False
        self._turn = threading.RLock()  # one consumer at a time
        self._error: TinyLoraError | None = None

    def send(self, value: Any, /) -> Any:
        """Go on; see `generator.send`.

        Raises:
            BusyError: the stream of this thread has the model, or the block that it was made in has ended.
            TinyLoraError: the model is closed.
        """
        if self._lock.inside:
            if self._begun:
                raise BusyError(_INSIDE)
            return self._steps.send(value)  # a part of the generation that made it
        with self._turn:
            if self._error is not None:
                raise type(self._error)(str(self._error))
            if self._over:
                raise StopIteration
            if not self._begun:
                if not self._scope.open:
                    self._scope = self._lock.scope()
                self._lock.take(self._scope)
                self._begun = True
            try:
                with self._lock.step(self._scope):
                    return self._steps.send(value)
            except BaseException:
                self._finish()
                raise

    def throw(self, *error: Any) -> Any:
        """Raise an error inside; see `generator.throw`."""
        with self._turn:
            try:
                return self._steps.throw(*error)
            except BaseException:
                self._finish()
                raise

    def close(self) -> None:
        """End it; its model is free for others."""
        with self._turn:
            try:
                self._steps.close()
            finally:
                self._finish()

    def end(self, scope: Scope | None, error: TinyLoraError) -> None:
        """End a stream of a scope, or of any, that has begun: a later step raises the error."""
        if self._begun and not self._over and scope in (None, self._scope):
            self._error = error
            self.close()

    def _finish(self) -> None:
        if self._begun and not self._over:
            self._lock.give(self._scope)
        self._over = True

    def __del__(self) -> None:
        if getattr(self, "_begun", False) and not self._over and not self._lock.gone:
            with suppress(Exception):
                self.close()
