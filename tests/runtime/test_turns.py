"""Shares of places and turns, by account and by tenant inside it; queues and threads that keep to them."""

from __future__ import annotations

import pytest

from tinylora_edge import OverloadError, TinyLoraError
from tinylora_edge.runtime.turns import Queue, Shares, Threads, Who


def who(name: str) -> Who:
    """`a1` is a tenant of the account `a`; `b` an account by itself."""
    return Who(name[0], name)


def shares(most: int, taken: str) -> Shares:
    made = Shares(most)
    for name in taken.split():
        made.take(who(name))
    return made


def filled(made: Shares, *names: str) -> dict[str, int]:
    """Take places in turn, until nobody of these may have another."""
    taken = dict.fromkeys(names, 0)
    while able := [name for name in names if made.has_room(who(name))]:
        for name in able:
            if made.has_room(who(name)):
                made.take(who(name))
                taken[name] += 1
    return taken


def test_an_account_has_half_of_all_places_and_leaves_some_to_each_that_comes() -> None:
    made = Shares(32)
    assert filled(made, "a") == {"a": 16}
    assert filled(made, "b") == {"b": 8}
    with pytest.raises(
        OverloadError,
        match="requests run: 16 of this account, 16 of this user, and the 8 free places are for others",
    ):
        made.check(who("a"), "run")
    for _ in range(16):
        made.leave(who("a"))
    assert filled(made, "c") == {"c": 12}


def test_a_tenant_has_a_third_and_many_have_no_more_than_their_account() -> None:
    assert filled(Shares(32), "a1") == {"a1": 11}
    made = Shares(32)
    assert filled(made, *(f"a{n}" for n in range(99))) == {f"a{n}": int(n < 16) for n in range(99)}
    assert made.has_room(who("b"))
    made = shares(32, "a1 " * 11)
    assert made.has_room(who("a2"))
    assert not made.has_room(who("a1"))


def test_who_comes_has_no_claim_on_tokens_from_before() -> None:
    made = shares(9, "a1 a2 b1")
    for name in ("a1", "a1", "a2", "b1"):
        made.count(who(name), 1)
    made.take(who("a3"))
    made.take(who("c1"))
    tokens = {name: made.tokens(who(name)) for name in ("a1", "a2", "a3", "b1", "c1")}
    assert tokens == {"a1": (3, 2), "a2": (3, 1), "a3": (3, 1), "b1": (1, 1), "c1": (1, 0)}
    made.leave(who("a1"))
    made.take(who("a1"))
    assert made.tokens(who("a1")) == (3, 1)


@pytest.mark.parametrize(
    ("waiting", "running", "expected"),
    [
        ("a a a b b c", "", "a b c a b a"),
        ("a a b c", "a a b", "c b a a"),
        ("a1 a2 a3 a4 b1 b2", "", "a1 b1 a2 b2 a3 a4"),
        ("a1 a1 a2 a3 b1", "", "a1 b1 a2 a3 a1"),
        ("a1 a1 a2", "a1", "a2 a1 a1"),
    ],
)
def test_the_next_is_of_the_account_that_has_least_and_in_it_of_the_tenant(waiting, running, expected):
    queue, now = Queue[object](99), shares(99, running)
    items = [(name, object()) for name in waiting.split()]
    for name, item in items:
        queue.add(who(name), item)
    queue.remove(who(items[-1][0]), items[-1][1])
    queue.remove(who(items[-1][0]), items[-1][1])  # it is not there any more
    queue.add(who(items[-1][0]), items[-1][1])
    taken = [queue.take(now) for _ in items]
    assert [each[0].tenant for each in taken if each] == expected.split()
    assert len(queue) == 0
    assert queue.take(now) is None


def test_a_queue_keeps_places_for_others_and_takes_nobody_who_has_no_room() -> None:
    queue = Queue[str](6)
    for name in ("a1", "a2", "a3", "b1"):
        queue.add(who(name), name)
    for name in ("a4", "b1"):
        with pytest.raises(OverloadError, match="requests wait: "):
            queue.add(who(name), name)
    queue.add(who("c1"), "c1")
    assert queue.take(shares(7, "a1 a1 b1 b1 c1 c1")) is None
    assert queue.take(shares(7, "a1 a1 b1 b1")) == (who("c1"), "c1")
    assert sorted(queue.drain()) == ["a1", "a2", "a3", "b1"]
    assert len(queue) == 0


def test_each_refusal_is_an_error_of_its_own() -> None:
    workers = Threads(2, 4, "workers", "they are closed")
    workers.close()
    errors = []
    for _ in range(2):
        with pytest.raises(TinyLoraError, match="they are closed") as caught:
            workers.submit(who("a"), int)
        errors.append(caught.value)
    assert errors[0] is not errors[1], "one would keep the frames of both"
