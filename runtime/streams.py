"""A stream: what is generated, item by item, in whichever threads its reader steps it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Protocol, Self, TypeAlias

Put: TypeAlias = Callable[[Any, BaseException | None], None]
"""What gets an item and None, or the end: an error, which is StopIteration where nothing went wrong."""


class Generator(Protocol):
    """What generates in a thread of its own: a `Loop`, or the `Worker` of a llama.cpp context."""

    def check_waiting(self) -> None:
        """Raise a `BusyError` in a callback of what it generates, which would wait for itself."""


class Stream(Iterator[Any]):
    """It begins with the first step, and is generated to its end however slow its reader is: nobody waits for
    a reader. Who leaves it early, by `close` or by dropping it, ends it.

    Args:
        generator: in whose thread it is generated.
        begin: asks for it, given where its items go; returns a call that gives it up.
    """

    def __init__(self, generator: Generator, begin: Callable[[Put], Callable[[], None]]) -> None:
        self._generator, self._begin = generator, begin
        self._give_up: Callable[[], None] | None = None
        self._over = False
        self._items: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._turn = threading.Lock()  # one reader at a time

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        self._generator.check_waiting()
        with self._turn:
            if self._over:
                raise StopIteration
            if self._give_up is None:
                items = self._items
                self._give_up = self._begin(lambda item, error: items.put((item, error)))
            item, error = self._items.get()
            if error is not None:
                self._over = True
                raise error
            return item

    def close(self) -> None:
        """End it. Again is fine."""
        if self._give_up is not None and not self._over:
            self._give_up()
        self._over = True

    def __del__(self) -> None:
        self.close()
