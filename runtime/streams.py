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


class Begun(Protocol):
    """What a stream began: `Work` of a loop, or a `Job` of a worker. `cancelled` asks it to end."""

    cancelled: bool


class Stream(Iterator[Any]):
    """It begins with the first step, and is generated to its end however slow its reader is: nobody waits for
    a reader. Who leaves it early, by `close` or by dropping it, ends it.

    Args:
        generator: in whose thread it is generated.
        begin: asks for it, given where its items go.
    """

    def __init__(self, generator: Generator, begin: Callable[[Put], Begun]) -> None:
        self._generator, self._begin = generator, begin
        self._begun: Begun | None = None
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
            if self._begun is None:
                items = self._items
                self._begun = self._begin(lambda item, error: items.put((item, error)))
            item, error = self._items.get()
            if error is not None:
                self._over = True
                raise error
            return item

    def close(self) -> None:
        """End it. Again is fine. It takes no lock: the garbage collector calls it too."""
        if self._begun is not None:
            self._begun.cancelled = True
        self._over = True

    def __del__(self) -> None:
        self.close()
