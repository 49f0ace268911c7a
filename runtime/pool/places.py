"""Places of a scheduler: slots that requests of many users get in turn, whatever the engine."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ...errors import TinyLoraError
from ...vector import MicroVector
from .answering import Answering
from .request import Finish
from .scheduler import Load
from .waiting import Waiting

_WORTH = 16
"""Tokens of a prompt that are worth a slot's other merits, where their cells are."""


@dataclass(eq=False, kw_only=True)
class Slot:
    """A sequence of an engine, and whose it is.

    Attributes:
        user: whose last request it has.
        vector: that its cells were computed with.
        tokens: whose cells it holds.
        used: when it was used last, in requests.
    """

    user: str = ""
    vector: MicroVector | None = None
    tokens: list[int] = field(default_factory=list)
    used: int = 0

    def shared(self, user: str, vector: MicroVector | None, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt it has already: nobody finds what another user asked."""
        if user != self.user or vector != self.vector:
            return 0
        limit = self._most(len(prompt))
        return next((i for i in range(limit) if prompt[i] != self.tokens[i]), limit)

    def cut(self, length: int) -> None:
        """Keep the first tokens alone. The engine cuts its cells before it uses them."""
        del self.tokens[length:]

    def _most(self, prompt: int) -> int:
        """Return how many tokens of a prompt this long it may have: the last is always evaluated."""
        return min(prompt - 1, len(self.tokens))


S = TypeVar("S", bound=Slot)


class Places(Generic[S]):
    """The requests that wait and those that have a slot. Any thread may call it.

    Args:
        slots: all of them.
        waiting: requests that wait at most.
        rank: what is least for the slot to take, of the free ones that have equally much of a prompt. The
            lock is held.

    Attributes:
        changed: the lock, notified when a request got a slot and when it is closed.
        running: what is being answered.
        closed: whether it takes no more requests.
    """

    def __init__(self, slots: Iterable[S], waiting: int, rank: Callable[[S], tuple[int, ...]]) -> None:
        self.changed = threading.Condition()
        self.running: dict[S, Answering] = {}
        self.closed = False
        self._slots, self._rank = list(slots), rank
        self._waiting: Waiting[Answering] = Waiting(waiting)
        self._users: Counter[str] = Counter()
        self._begun = 0

    def add(self, answering: Answering) -> None:
        """Let a request wait for its turn.

        Raises:
            OverloadError: too many wait.
            TinyLoraError: it is closed.
        """
        with self.changed:
            if self.closed:
                raise TinyLoraError("the pool is closed: it was, or its model was. Make another one")
            self._waiting.add(answering.request.user, answering)
            self._place()

    def withdraw(self, answering: Answering) -> None:
        """Let a request wait no longer; one that is being answered is noticed by the thread that does it."""
        with self.changed:
            self._waiting.remove(answering.request.user, answering)

    def load(self) -> Load:
        """Return how busy it is."""
        with self.changed:
            return Load(len(self.running), len(self._waiting))

    def leave(self, slot: S, answering: Answering, end: Finish | BaseException | None) -> None:
        """Free a slot, and then report the end: the user's next request finds the slot free.

        Args:
            slot: of the request; nothing is done where it has left already.
            answering: the request.
            end: how it ended; None where nobody wants to know.
        """
        with self.changed:
            if self.running.get(slot) is not answering:
                return
            del self.running[slot]
            self._users -= Counter({answering.request.user: 1})  # which drops who has none
            if not self.closed:
                self._place()
        if end is not None:
            answering.report(end)

    def close(self) -> None:
        """Take no more requests, and let whoever waits for `changed` see it."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def end(self) -> None:
        """End with an error what is left, once nothing computes any more."""
        for answering in [*self.running.values(), *self._waiting.drain()]:
            answering.report(TinyLoraError("the pool is closed: the answer ends here"))
        self.running.clear()

    def _place(self) -> None:
        """Give free slots to requests that wait. The lock is held."""
        while len(self._waiting) and (free := [slot for slot in self._slots if slot not in self.running]):
            answering = self._waiting.take(self._users)
            slot = self._best(answering, free)
            request = answering.request
            if request.user != slot.user or request.vector != slot.vector:
                slot.cut(0)
                slot.user, slot.vector = request.user, request.vector
            self._begun += 1
            slot.used = self._begun
            self.running[slot] = answering
            self._users[request.user] += 1
            self.changed.notify_all()

    def _best(self, answering: Answering, free: Iterable[S]) -> S:
        """Return the slot that has most of the prompt, else the one of the least rank."""
        request = answering.request

        def rank(slot: S) -> tuple[int, ...]:
            has = slot.shared(request.user, request.vector, request.prompt)
            return (-has if has >= _WORTH else 0, *self._rank(slot))

        return min(free, key=rank)
