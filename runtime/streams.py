"""Streams: generators that an app steps in whichever thread, and that a model can go ahead of, and end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from typing import Any
from weakref import ref

from ..errors import TinyLoraError
from .gate import Gate, Hold


class Stream(Generator[Any, Any, None]):
    """A generation in the hands of its consumer. It has the model from its first step until it ends.

    Nobody else holds it, so that it is gone in the moment in which its consumer drops it, although others may
    just go ahead with the generation.

    Args:
        steps: the generator.
        gate: of the model.
        whole: it ends by itself, so that its rest may be generated before its consumer asks for it.
    """

    def __init__(self, steps: Generator[Any, Any, Any], gate: Gate, *, whole: bool) -> None:
        self._generation = _Generation(steps, gate, whole=whole)

    def send(self, value: Any, /) -> Any:
        """Go on; see `generator.send`.

        Raises:
            BusyError: another generation took its place.
            TinyLoraError: the model is closed.
        """
        return self._generation.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an error inside; see `generator.throw`."""
        return self._generation.throw(*error)

    def close(self) -> None:
        """End it, as its owner does."""
        self._generation.close()

    def end(self, error: TinyLoraError | None = None) -> None:
        """End it where it has begun; `error` is what a later step raises, without one it is just over."""
        self._generation.end(error)

    def __del__(self) -> None:
        if hasattr(self, "_generation"):
            self._generation.dropped = True


class _Generation:
    """The generation of a stream, which others go ahead with, and end. Arguments are those of `Stream`."""

    def __init__(self, steps: Generator[Any, Any, Any], gate: Gate, *, whole: bool) -> None:
        self.whole, self.dropped = whole, False
        self._gate, self._turns = gate, _Turns(gate)
        self._steps = _owned(steps, self._turns)
        self._made_in = gate.made_in()
        self._turn = threading.RLock()  # one consumer at a time
        self._ahead: deque[Any] = deque()
        self._over = False
        self._error: BaseException | None = None  # of the step after what is ahead
        self._ended: TinyLoraError | None = None

    def send(self, value: Any) -> Any:
        if self._gate.inside:  # a part of the generation that made it
            return self._steps.send(value)
        with self._turn:
            if self._turns.hold is None and not self._over:
                self._turns.hold = self._gate.begin(ref(self), self._made_in)
            if self._turns.hold is not None:
                with self._gate.alone():
                    if not self._over:
                        return self._ahead.popleft() if self._ahead else self._step(value)
                    self._finish()  # it was ended while it began
            return self._rest()

    def _rest(self) -> Any:
        """Return what was generated ahead, and after it raise what ended it."""
        if self._ended is not None:
            raise type(self._ended)(str(self._ended))
        if self._ahead:
            return self._ahead.popleft()
        error, self._error = self._error, None
        raise error or StopIteration

    def _step(self, value: Any) -> Any:
        assert self._turns.hold is not None
        self._gate.note(self._turns.hold)
        try:
            return self._steps.send(value)
        except BaseException:
            self._finish()
            raise

    def go_ahead(self) -> None:
        """Generate one more item, and keep it for the consumer; so with an error of the generation."""
        with self._gate.alone():
            if self._over or self._turns.hold is None:
                return
            try:
                self._ahead.append(self._steps.send(None))
            except StopIteration:
                self._finish()
            except Exception as error:
                self._error = error
                self._finish()
            except BaseException:  # of this thread and not of the generation, which cannot go on after it
                self.end(TinyLoraError("this stream was interrupted: generate again"))
                raise

    def end(self, error: TinyLoraError | None = None) -> None:
        """End a stream that has begun; `error` is what a later step raises, without one it is just over."""
        with self._gate.alone():
            if self._turns.hold is None or self._over:
                return
            self._ended = error
            self.close()

    def throw(self, *error: Any) -> Any:
        with self._gate.alone():
            try:
                return self._steps.throw(*error)
            except BaseException:
                self._finish()
                raise

    def close(self) -> None:
        with self._gate.alone():
            self._ahead.clear()
            try:
                self._steps.close()
            finally:
                self._finish()

    def _finish(self) -> None:
        self._over = True
        self._turns.give()


class _Turns:
    """The hold of a generation, which is given back at the latest when nobody has it any more.

    The generation itself has no `__del__`: in the midst of one, weak references still give the object, and
    another thread would go ahead with what is being closed.
    """

    def __init__(self, gate: Gate) -> None:
        self.hold: Hold | None = None
        self._gate = gate

    def give(self) -> None:
        hold, self.hold = self.hold, None
        if hold is not None:
            self._gate.give(hold)

    def __del__(self) -> None:
        # No lock but the gate's own: the collector comes at any time.
        if getattr(self, "hold", None) is not None and not self._gate.gone:
            self.give()


def _owned(steps: Generator[Any, Any, Any], turns: _Turns) -> Generator[Any, Any, Any]:
    """Step a generator, and keep the turn until it is closed: a frame lets go of what it has when it ends."""
    return (yield from steps)
