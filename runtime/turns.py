"""Whose turn it is: places and turns are shared by account first, and by tenant inside an account.

An account is who pays or answers for requests, such as an app's API key; its tenants are its users. Whatever
one account does, and however many tenants it names, the others find a place and have as many turns as it has.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from tinylora_edge.errors import OverloadError, TinyLoraError

from .engine import check_alive

T = TypeVar("T")


class Who(NamedTuple):
    """Whose request it is. A tenant without an account is its own: both fields have its name."""

    account: str
    tenant: str


class Shares:
    """Places: who has taken them, and how many tokens each of those has had evaluated.

    An account may take at most as many places as it leaves free: alone it has half of them. A tenant may take
    at most as many as it leaves to the other tenants of its account: alone it has a third. Where places come
    free within seconds, an account that has one may take others, but not the last.

    Args:
        most: places.
        brief: they come free within seconds.
    """

    def __init__(self, most: int, *, brief: bool = False) -> None:
        self._free, self._brief = most, brief
        self._taken: Counter[str | Who] = Counter()  # by account (str), and by tenant (Who)
        self._tokens: dict[str | Who, int] = {}  # likewise, of those that have a place

    def of(self, who: Who) -> tuple[int, int]:
        """Return how many places an account has, and one of its tenants."""
        return self._taken[who.account], self._taken[who]

    def has_room(self, who: Who) -> bool:
        """Whether a tenant may have another place."""
        account, mine = self.of(who)
        if self._brief:
            return self._free > bool(account)
        left = self._free - account
        return left > (0 if who.account == who.tenant else mine)

    def check(self, who: Who, doing: str) -> None:
        """Raise an OverloadError if a tenant may have no more places; its requests "are open", or "wait"."""
        if not self.has_room(who):
            account, mine = self.of(who)
            raise OverloadError(
                f"too many requests {doing}: {account} of this account, {mine} of this user, and the "
                f"{self._free} free places are for others: ask again later"
            )

    def take(self, who: Who) -> None:
        """Take a place. An account or tenant without one starts with the fewest tokens of another."""
        if not self._taken[who.account]:
            others = (tokens for each, tokens in self._tokens.items() if not isinstance(each, Who))
            self._tokens[who.account] = min(others, default=0)
        if not self._taken[who]:
            beside = (each for each in self._tokens if isinstance(each, Who) and each.account == who.account)
            self._tokens[who] = min((self._tokens[each] for each in beside), default=0)
        self._taken.update((who.account, who))
        self._free -= 1

    def move(self, who: Who, to: Who, doing: str) -> None:
        """Give a place to another tenant. OverloadError: that one may not have it; the place stays."""
        self.leave(who)
        try:
            self.check(to, doing)
        except OverloadError:
            self.take(who)
            raise
        self.take(to)

    def leave(self, who: Who) -> None:
        """Free a place."""
        for each in (who.account, who):
            self._taken[each] -= 1
            if not self._taken[each]:
                del self._taken[each], self._tokens[each]
        self._free += 1

    def tokens(self, who: Who) -> tuple[int, int]:
        """Return how many tokens an account had since it came, and one of its tenants."""
        return self._tokens[who.account], self._tokens[who]

    def count(self, who: Who, tokens: int) -> None:
        """Count tokens that were evaluated."""
        for each in (who.account, who):
            self._tokens[each] += tokens


class Queue(Generic[T]):
    """Items that wait, at most so many of all together. The account with the fewest running places comes
    next, and of its tenants the one with the fewest; equals come by turns."""

    def __init__(self, most: int) -> None:
        self._shares = Shares(most)
        # By account and tenant; among equals those that come first are next.
        self._items: OrderedDict[str, OrderedDict[Who, deque[T]]] = OrderedDict()
        self._last = ""  # the account that was taken last: among equals it comes last

    def __len__(self) -> int:
        return sum(len(items) for tenants in self._items.values() for items in tenants.values())

    def add(self, who: Who, item: T) -> None:
        """Let an item wait. OverloadError: too many of its account or its tenant wait."""
        self._shares.check(who, "wait")
        self._shares.take(who)
        self._items.setdefault(who.account, OrderedDict()).setdefault(who, deque()).append(item)

    def take(self, running: Shares) -> tuple[Who, T] | None:
        """Remove and return the next one; None where nobody who waits may have another running place."""
        for account in sorted(self._items, key=lambda a: (running.of(Who(a, a))[0], a == self._last)):
            tenants = self._items[account]
            who = min(tenants, key=lambda each: running.of(each)[1])
            if running.has_room(who):
                item = tenants[who].popleft()
                self._items.move_to_end(account)
                tenants.move_to_end(who)
                self._left(who)
                self._last = account
                return who, item
        return None

    def remove(self, who: Who, item: T) -> None:
        """Take out an item that is not wanted any more, if it is there."""
        items = self._items.get(who.account, OrderedDict()).get(who)
        if items is not None and item in items:
            items.remove(item)
            self._left(who)

    def drain(self) -> list[T]:
        """Take out all items, and return them."""
        found = []
        for account in list(self._items):
            for who, items in list(self._items[account].items()):
                while items:
                    found.append(items.popleft())
                    self._left(who)
        return found

    def _left(self, who: Who) -> None:
        self._shares.leave(who)
        tenants = self._items[who.account]
        if not tenants[who]:
            del tenants[who]
        if not tenants:
            del self._items[who.account]


class Turn(NamedTuple):
    """A call of `Threads`: whose it is, what will have its result, and the call."""

    who: Who
    future: Future[Any]
    call: Callable[[], Any]


class Threads:
    """Threads that run calls by turns. An account has at most half of the threads, so that another one waits
    for its own calls alone; where there is one thread, also for the call that it runs.

    Args:
        count: threads.
        waiting: calls that may wait.
        name: of the threads.
        closed: text of the error after `close`.

    Attributes:
        closed: whether `close` was called.
    """

    def __init__(self, count: int, waiting: int, name: str, closed: str) -> None:
        self._changed = threading.Condition()
        self._queue: Queue[Future[Any]] = Queue(waiting)
        self._calls: dict[Future[Any], Callable[[], Any]] = {}  # of those that wait
        self._running = Shares(count)
        self._message, self.closed = closed, False
        self._threads = list[threading.Thread]()
        self._start(count, name)

    def submit(self, who: Who, call: Callable[[], T]) -> Future[T]:
        """Return what a call will return; one that waits may be cancelled. OverloadError: too many wait."""
        future: Future[T] = Future()
        with self._changed:
            if self.closed:
                raise TinyLoraError(self._message)
            check_alive(self._threads)
            self._queue.add(who, future)
            self._calls[future] = call
            self._changed.notify()
        future.add_done_callback(partial(self._cancelled, who))
        return future

    def _cancelled(self, who: Who, future: Future[Any]) -> None:
        if future.cancelled():
            with self._changed:
                self._queue.remove(who, future)
                self._calls.pop(future, None)

    def close(self) -> None:
        """End the threads, after the calls that run; those that wait or come later end with an error."""
        with self._changed:
            self.closed = True
            self._calls.clear()
            for future in self._queue.drain():
                if future.set_running_or_notify_cancel():
                    future.set_exception(TinyLoraError(self._message))
            self._changed.notify_all()

    def _start(self, count: int, name: str) -> None:
        self._threads += [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (turn := self._wait()) is not None:
            self.run(turn)
            del turn  # else the thread keeps what it holds until its next call

    def _wait(self) -> Turn | None:
        """Wait for a call that may run; return None once there is none and they are closed."""
        with self._changed:
            while (turn := self.take()) is None and not self.closed:
                self._changed.wait()
            return turn

    def take(self) -> Turn | None:
        """Return the next call, which counts as running from now on; None where none may run."""
        with self._changed:
            if (found := self._queue.take(self._running)) is None:
                return None
            who, future = found
            self._running.take(who)
            return Turn(who, future, self._calls.pop(future))

    def run(self, turn: Turn) -> None:
        """Run a call that was taken, unless it was cancelled meanwhile."""
        try:
            if turn.future.set_running_or_notify_cancel():
                turn.future.set_result(turn.call())
        except BaseException as error:
            turn.future.set_exception(error)
        finally:
            with self._changed:
                self._running.leave(turn.who)
                self._changed.notify_all()
