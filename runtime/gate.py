"""The gate of a model: generations and exchanges of the vector take turns.

Whoever has the model is a `Hold`: a call, an exchange, a stream from its first step to its end, or a block.
What begins inside a block takes turns within that block. No thread owns anything: a step borrows the hold of
its stream, whichever thread takes it, and a call belongs to the block that its context was in (`contextvars`,
so that it follows `asyncio.to_thread` too).
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Protocol

from ..errors import BusyError, TinyLoraError
from .process import Process

_POLL = 0.2  # seconds: what the garbage collector gives back in the midst of a look is seen then

_OWN = (
    "a generation that this thread started is unfinished: exhaust or close its stream before exchanging the "
    "vector"
)
_TAKEN = (
    "this stream cannot go on: its thread began another generation before it ended, and that took its place "
    "in the KV cache"
)
_SUSPENDED = (
    "a `using` block of a generator is open, and this thread, which stepped the generator, is not inside it: "
    "exhaust or close the generator first, or call from another thread, which waits"
)
_OTHER_TASK = (
    "a `using` block that this thread entered in another task is open, and waiting here would keep it from "
    "ending: let the tasks take turns (asyncio.Lock), or enter the blocks in threads"
)


class Unfinished(Protocol):
    """A stream that has the model, as whoever waits for it sees it."""

    whole: bool
    """Whether it ends by itself, so that its rest may be generated before its consumer asks for it."""

    dropped: bool
    """Whether its consumer is gone, so that nobody asks for more of it."""

    def go_ahead(self) -> None:
        """Generate one more item ahead of the consumer."""

    def end(self, error: TinyLoraError | None = None) -> None:
        """End it; `error` is what a later step raises."""


class Hold:
    """The right to a model, or within a block to the model as the block has it.

    Attributes:
        parent: the hold that this one is within; None for the model's own.
        child: who has the model within this one.
        waiting: who waits for that, first come, first served.
        open: whether anything may still begin within it.
        stream: gives the stream whose hold this is, while it exists.
        thread: the last one that took a step of the stream, or that entered the block. It owns nothing: it
            only cannot wait for itself.
        block: whether it is that of a block.
        extent: the frame of the generator that the block stands in, if it does.
    """

    def __init__(self, parent: Hold | None, stream: Callable[[], Unfinished | None] | None = None) -> None:
        self.parent = parent
        self.child: Hold | None = None
        self.waiting: list[Hold] = []
        self.open = True
        self.stream = stream or (lambda: None)
        self.thread: int | None = None
        self.block = False
        self.extent: FrameType | None = None


_blocks: ContextVar[tuple[tuple[Gate, Hold], ...]] = ContextVar("tinylora_blocks", default=())


class Gate:
    """The turns of one model.

    One model has one KV cache, so that its streams are generated one after another. A stream has the model
    from its first step until it ends, is closed or is dropped. Another generation that finds it waiting for
    its consumer generates the rest of it first and keeps that for the consumer: neither has to be refused,
    and a pool whose threads all begin streams does not wait for itself. A stream of bare tokens has no end of
    its own and is not gone ahead with: others wait for it, and the thread that took its last step, which
    could only wait for itself, takes its place.

    An exchange needs the model to itself. It waits, and is refused in the thread that took the last step of
    the stream that it would wait for.
    """

    _ident = staticmethod(threading.get_ident)  # bound early: when the interpreter ends, globals go first

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._computing = threading.RLock()
        self._thread: int | None = None  # that is inside a step
        self._root = Hold(None)
        self._process = Process()
        self.closed = False

    @property
    def gone(self) -> bool:
        """Whether there is nothing to close: it is closed, or this process is a fork, which frees nothing."""
        return self.closed or self._process.forked

    def abandon(self) -> bool:
        """Give the model up where a thread that the end of the process does not wait for is inside a step."""
        if self._computing.acquire(blocking=False):
            self._computing.release()
            return False
        self.closed = True
        return True

    @property
    def inside(self) -> bool:
        """Whether this thread is inside a step, of which whatever it calls is a part."""
        self._process.check()
        return self._thread == self._ident()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Compute, or change what is computed with, one thread at a time; again inside itself is fine."""
        self._process.check()
        with self._computing:
            outer, self._thread = self._thread, self._ident()
            try:
                yield
            finally:
                self._thread = outer

    @contextmanager
    def step(self) -> Iterator[None]:
        """Compute while the model is there.

        Raises:
            TinyLoraError: it is closed.
        """
        with self.alone():
            self.check_open()
            yield

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold the model for one call; inside a step it is a part of that."""
        if self.inside:
            yield
            return
        hold = self._take(self.scope(), exchange=False)
        try:
            with self.step():
                yield
        finally:
            self.give(hold)

    @contextmanager
    def look(self) -> Iterator[None]:
        """Hold the model for a call that changes nothing: this thread's unfinished stream stays as it is."""
        owner = None if self.inside else self.scope().child
        if owner is None or owner.stream() is None or owner.thread != self._ident():
            with self.call():
                yield
        else:
            with self.step():
                yield

    def begin(self, stream: Callable[[], Unfinished | None], within: Hold | None) -> Hold:
        """Return the hold of a stream that begins.

        Args:
            stream: gives the stream, while it exists.
            within: the block that it was made in.
        """
        scope = self.scope()
        if scope is self._root and within is not None and within.open:
            scope = within
        return self._take(scope, exchange=False, stream=stream)

    @contextmanager
    def exchange(self, *, wait: bool = True, timeout: float | None = None) -> Iterator[None]:
        """Hold the model while no generation is running.

        Raises:
            BusyError: this thread's own generation is unfinished, or another one holds the model and `wait`
                is False or `timeout` seconds have passed.
        """
        if self.inside:
            raise BusyError(_OWN)
        hold = self._take(self.scope(), exchange=True, wait=wait, timeout=timeout)
        try:
            with self.step():
                yield
        finally:
            self.give(hold)

    @contextmanager
    def block(self) -> Iterator[Hold]:
        """Hold the model for a block, within which generations and exchanges of its context take turns."""
        if self.inside:
            raise BusyError(_OWN)
        hold = self._take(self.scope(), exchange=True)
        hold.block, hold.extent = True, _generator_outside(sys._getframe())
        _blocks.set((*(each for each in _blocks.get() if each[1].open), (self, hold)))
        try:
            yield hold
        finally:
            hold.extent = None
            self.give(hold)
            _blocks.set(tuple(each for each in _blocks.get() if each[1].open))

    @contextmanager
    def emptied(self, block: Hold) -> Iterator[None]:
        """Be alone in a block that ends: its unfinished stream is ended, and nothing begins in it."""
        with self._changed:
            block.open = False
            self._changed.notify_all()
        while (child := block.child) is not None and not self.inside:
            if (stream := child.stream()) is not None:
                stream.end()
                continue
            with self._changed:
                if block.child is child:
                    self._changed.wait(_POLL)
        with self.alone():
            yield

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Be alone with the model for the last time: whoever waits for it, or comes later, is refused.

        Raises:
            BusyError: this thread is inside a step.
        """
        if self.inside:
            raise BusyError("the model cannot be closed inside its own generation: close it afterwards")
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        with self.alone():
            yield

    def scope(self) -> Hold:
        """Return what this context is within: the innermost open block that it entered, or the model.

        Raises:
            BusyError: it entered a block in a generator, which is suspended now.
        """
        self._process.check()
        for gate, block in reversed(_blocks.get()):
            if gate is self and block.open:
                if block.extent is not None and not _running(block.extent):
                    raise BusyError(_SUSPENDED)
                return block
        return self._root

    def made_in(self) -> Hold | None:
        """Return the open block that this context entered, for what begins later, maybe elsewhere."""
        return next((b for gate, b in reversed(_blocks.get()) if gate is self and b.open), None)

    def give(self, hold: Hold) -> None:
        """Give back a hold; again is fine."""
        parent = hold.parent
        with self._changed:
            hold.open = False
            if parent is not None and parent.child is hold:
                parent.child = None
                self._changed.notify_all()

    def note(self, hold: Hold) -> None:
        """Note that this thread takes a step of a stream."""
        hold.thread = self._ident()

    def check_open(self) -> None:
        """Refuse to go on with a closed model, or in a fork."""
        self._process.check()
        if self.closed:
            raise TinyLoraError("the model is closed: load it again")

    def _take(
        self,
        parent: Hold,
        *,
        exchange: bool,
        wait: bool = True,
        timeout: float | None = None,
        stream: Callable[[], Unfinished | None] | None = None,
    ) -> Hold:
        hold, until = Hold(parent, stream), None if timeout is None else time.monotonic() + timeout
        hold.thread = self._ident()
        with self._changed:
            parent.waiting.append(hold)
        try:
            while not self._taken(parent, hold):
                self._make_way(parent, exchange=exchange)
                if not wait:
                    raise BusyError("a generation is running in another thread, and wait=False was asked for")
                left = _POLL if until is None else min(_POLL, until - time.monotonic())
                if left <= 0:
                    raise BusyError(f"a generation in another thread did not end within {timeout} s")
                with self._changed:
                    if not self._is_next(parent, hold) and not self._can_go_ahead(parent, exchange=exchange):
                        self._changed.wait(left)
        finally:
            with self._changed:
                parent.waiting.remove(hold)
                self._changed.notify_all()
        return hold

    def _taken(self, parent: Hold, hold: Hold) -> bool:
        with self._changed:
            self.check_open()
            if not parent.open:
                raise BusyError("the `using` block that this belongs to has ended")
            if not self._is_next(parent, hold):
                return False
            parent.child = hold
            return True

    def _is_next(self, parent: Hold, hold: Hold) -> bool:
        return parent.child is None and parent.waiting[0] is hold

    def _can_go_ahead(self, parent: Hold, *, exchange: bool) -> bool:
        owner = parent.child
        stream = None if exchange or owner is None else owner.stream()
        return stream is not None and stream.whole

    def _make_way(self, parent: Hold, *, exchange: bool) -> None:
        """Do what can be done about the stream that has the model, other than wait for its consumer."""
        owner = parent.child
        if owner is None:
            return
        mine, stream = owner.thread == self._ident(), owner.stream()
        if owner.block and owner.extent is None and mine:
            raise BusyError(_OTHER_TASK)
        if stream is None:
            return
        if stream.dropped:  # while another thread was at it
            stream.end()
        elif exchange:
            if mine:
                raise BusyError(_OWN)
        elif stream.whole:
            stream.go_ahead()
        elif mine:
            stream.end(BusyError(_TAKEN))


def _generator_outside(frame: FrameType | None) -> FrameType | None:
    """Return the frame of the generator that a block is entered in, which may be suspended inside it.

    A generator that only makes a context manager is none: the block goes on outside of it.
    """
    while frame is not None:
        if frame.f_code.co_filename == contextlib.__file__:
            frame = frame.f_back
        elif not frame.f_code.co_flags & inspect.CO_GENERATOR:
            return None
        elif frame.f_back is not None and frame.f_back.f_code.co_filename == contextlib.__file__:
            frame = frame.f_back
        else:
            return frame
    return None


def _running(frame: FrameType) -> bool:
    """Return whether a frame is on this thread's stack."""
    each: FrameType | None = sys._getframe()
    while each is not None and each is not frame:
        each = each.f_back
    return each is frame
