"""Who waits: users take turns, whoever asked for how much before."""

from __future__ import annotations

import pytest

from tinylora_edge import OverloadError
from tinylora_edge.runtime.pool.waiting import Waiting


def taken(waiting: Waiting[str], count: int, running: dict[str, int] | None = None) -> list[str]:
    return [waiting.take(running or {}) for _ in range(count)]


def test_users_take_turns() -> None:
    waiting: Waiting[str] = Waiting(9)
    for item in ("a1", "a2", "a3", "b1", "b2", "c1"):
        waiting.add(item[0], item)
    assert taken(waiting, 6) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert len(waiting) == 0
    with pytest.raises(LookupError):
        waiting.take({})


def test_who_has_least_comes_first() -> None:
    waiting: Waiting[str] = Waiting(9)
    for item in ("a1", "a2", "b1", "c1"):
        waiting.add(item[0], item)
    assert taken(waiting, 4, {"a": 2, "b": 1}) == ["c1", "b1", "a1", "a2"]


def test_a_user_who_comes_back_queues_up_again() -> None:
    waiting: Waiting[str] = Waiting(9)
    for item in ("a1", "b1", "b2"):
        waiting.add(item[0], item)
    assert waiting.take({}) == "a1"
    waiting.add("a", "a2")
    assert taken(waiting, 3) == ["b1", "a2", "b2"]


def test_no_more_than_the_most_wait() -> None:
    waiting: Waiting[str] = Waiting(1)
    waiting.add("a", "a1")
    with pytest.raises(OverloadError, match="1 requests wait already"):
        waiting.add("b", "b1")
    assert not waiting.remove("b", "b1")
    assert not waiting.remove("a", "other")
    assert waiting.remove("a", "a1")
    waiting.add("b", "b1")
    assert waiting.drain() == ["b1"]
    assert len(waiting) == 0
