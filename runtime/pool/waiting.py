"""Requests that wait: users take turns, so that nobody waits for all that another one asked for before."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Generic, TypeVar

from ...errors import OverloadError

T = TypeVar("T")


class Waiting(Generic[T]):
    """A queue in which the next item is that of a user who has least at the moment, in turn among these.

    Args:
        most: items that wait at the same time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._users: OrderedDict[str, deque[T]] = OrderedDict()  # who is served next comes first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, user: str, item: T) -> None:
        """Let an item wait.

        Raises:
            OverloadError: as many wait as may.
        """
        if self._count >= self._most:
            raise OverloadError(f"{self._count} requests wait already, and no more may: ask again later")
        self._users.setdefault(user, deque()).append(item)
        self._count += 1

    def take(self, running: Mapping[str, int]) -> T:
        """Return the next item, which waits no longer.

        Args:
            running: how many items of each user are being worked on.

        Raises:
            LookupError: nothing waits.
        """
        if not self._users:
            raise LookupError("nothing waits")
        user = min(self._users, key=lambda each: running.get(each, 0))  # the first of those in turn
        items = self._users[user]
        item = items.popleft()
        self._count -= 1
        if items:
            self._users.move_to_end(user)
        else:
            del self._users[user]
        return item

    def remove(self, user: str, item: T) -> bool:
        """Take an item out that is not wanted any more; say whether it was there."""
        items = self._users.get(user)
        if items is None or item not in items:
            return False
        items.remove(item)
        self._count -= 1
        if not items:
            del self._users[user]
        return True

    def drain(self) -> list[T]:
        """Return all items; none waits afterwards."""
        found = [item for items in self._users.values() for item in items]
        self._users.clear()
        self._count = 0
        return found
