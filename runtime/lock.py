"""The lock of a model: one at a time has it.

That is a call, an exchange of the vector, or a stream, from its first step until it ends, is closed or is
dropped. Whoever else wants the model waits, in turn; a thread that would wait for itself, because the stream
that has the model took its last step there, gets a `BusyError`. A `using` block has the model too, and lends
it to what its context calls (`contextvars`, so that `asyncio.to_thread` belongs to it) and to the streams
that were made in it, one at a time again; everybody else waits until it ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

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
        """Raise a `TinyLoraError` in a fork."""
        if self.forked:
            raise TinyLoraError(
                f"the model was loaded in process {self._id}, and this is {self._getpid()}, which was forked "
                "from it without the engine's threads: load the model after the fork, or start processes "
                "with multiprocessing's `spawn`"
            )


class Holder:
    """A call, a block or a stream that has the model, or waits for it; within the block that lends it."""

    def __init__(self, lock: ModelLock, steps: Generator[Any, Any, Any] | None = None) -> None:
        self.lock, self.steps = lock, steps
        self.within = lock.block_here()
        self.thread: int | None = None  # of its last step, which could only wait for itself
        self.ended: TinyLoraError | None = None  # why it may not go on

    def end(self, error: TinyLoraError) -> None:
        """Take the model away between two steps; a later one raises the error."""
        self.ended = error
        if self.steps is not None:
            self.steps.close()

    def check(self) -> None:
        """Raise the error that it was ended with."""
        if self.ended is not None:
            raise type(self.ended)(str(self.ended))


_blocks: ContextVar[tuple[Holder, ...]] = ContextVar("tinylora_blocks", default=())


class ModelLock:
    """The lock of one model; see above. Once it is closed nothing may begin."""

    _ident = staticmethod(threading.get_ident)

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._top: Holder | None = None  # has the model; below it are the blocks that lend it
        self._waiting: list[Holder] = []
        self._computing: int | None = None  # the thread that is inside a step
        self._process = Process()
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

    def block_here(self) -> Holder | None:
        """Return the innermost open block of this context."""
        return next((b for b in reversed(_blocks.get()) if b.lock is self and b.ended is None), None)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Have the model for one call; inside a step it is a part of that."""
        if self.inside:
            yield
        else:
            with self.exchange():
                yield

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Have the model while no generation is unfinished."""
        with self._held() as holder, self.step(holder):
            yield

    @contextmanager
    def block(self) -> Iterator[Holder]:
        """Have the model for a block, and lend it to its context."""
        with self._held() as holder:
            _blocks.set((*(each for each in _blocks.get() if each.ended is None), holder))
            yield holder

    @contextmanager
    def ending(self, block: Holder | None = None) -> Iterator[None]:
        """Compute once nothing goes on in a block, or in the model, for the last time; streams are ended."""
        if self.inside:
            raise BusyError(_INSIDE)
        error = TinyLoraError(CLOSED) if block is None else BusyError(_ENDED)
        if block is None:
            self.closed = True
        else:
            block.ended = error
        with self._computes():
            while (top := self._top) is not None and top is not block:
                top.end(error)
                self.give(top)
            yield

    @contextmanager
    def step(self, holder: Holder) -> Iterator[None]:
        """Compute for who has the model."""
        with self._computes():
            self.check_open()
            holder.check()
            holder.thread = self._ident()
            yield

    def take(self, holder: Holder) -> None:
        """Wait for the model, in turn; a `BusyError` where this thread would wait for itself."""
        with self._changed:
            self._waiting.append(holder)
            try:
                while not self._free_for(holder):
                    self._changed.wait(_POLL)
                self._top, holder.thread = holder, self._ident()
            finally:
                self._waiting.remove(holder)
                self._changed.notify_all()

    def give(self, holder: Holder) -> None:
        """Give the model back."""
        with self._changed:
            if self._top is holder:
                self._top = holder.within
            self._changed.notify_all()

    def _free_for(self, holder: Holder) -> bool:
        self.check_open()
        lender, each = holder.within, self._top
        if lender is not None:
            lender.check()
        while each is not None and each is not lender:
            if each.thread == self._ident():
                raise BusyError(_OWN)
            each = each.within
        first = next(other for other in self._waiting if other.within is lender)
        return self._top is lender and first is holder

    @contextmanager
    def _held(self) -> Iterator[Holder]:
        if self.inside:
            raise BusyError(_INSIDE)
        holder = Holder(self)
        self.take(holder)
        try:
            yield holder
        finally:
            holder.ended = BusyError(_ENDED)
            self.give(holder)

    @contextmanager
    def _computes(self) -> Iterator[None]:
        with self._changed:
            self._changed.notify_all()  # who waits may be refused now
            while self.busy:
                self._changed.wait(_POLL)
            before, self._computing = self._computing, self._ident()
        try:
            yield
        finally:
            with self._changed:
                self._computing = before
                self._changed.notify_all()


class SharedLock:
    """Many share something at the same time, or one has it alone. Nobody enters twice."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Share it, once nobody is alone."""
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be alone: whoever shares it ends first, and nobody begins meanwhile."""
        mine = False
        try:
            with self._changed:
                while self._alone:
                    self._changed.wait()
                self._alone = mine = True
                while self._sharing:
                    self._changed.wait()
            yield
        finally:  # an interrupt may end the wait, and nobody would begin any more
            if mine:
                with self._changed:
                    self._alone = False
                    self._changed.notify_all()


class Stream(Generator[Any, Any, None]):
    """A generation in the hands of its consumer, which steps it in any thread."""

    def __init__(self, steps: Generator[Any, Any, Any], lock: ModelLock) -> None:
        self._steps, self._lock = steps, lock
        self._holder = Holder(lock, steps)  # which the lock keeps; it does not keep the stream
        self._begun = self._over = False
        self._turn = threading.RLock()  # one consumer at a time

    def send(self, value: Any, /) -> Any:
        """Go on; see `generator.send`. Errors are those of `ModelLock.take`."""
        if self._lock.inside:
            if self._begun:
                raise BusyError(_INSIDE)
            return self._steps.send(value)  # a part of the generation that made it
        with self._turn:
            self._holder.check()
            if self._over:
                raise StopIteration
            if not self._begun:
                self._lock.take(self._holder)
                self._begun = True
            try:
                with self._lock.step(self._holder):
                    return self._steps.send(value)
            except BaseException:
                self._finish()
                raise

    def throw(self, *error: Any) -> Any:
        """End it, and raise an error."""
        self.close()
        return super().throw(*error)

    def close(self) -> None:
        """End it; its model is free for others."""
        with self._turn:
            try:
                self._steps.close()
            finally:
                self._finish()

    def _finish(self) -> None:
        self._over = True
        if self._begun:
            self._lock.give(self._holder)

    def __del__(self) -> None:
        if getattr(self, "_begun", False) and not self._over and not self._lock.gone:
            with suppress(Exception):
                self.close()
