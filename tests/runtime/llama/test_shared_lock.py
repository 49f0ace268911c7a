"""SharedLock: many share something at the same time, or one has it alone."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from turns import MOMENT, PATIENCE, blocked, start

from tinylora_edge.runtime.llama.adapters import SharedLock


def test_who_is_alone_waits_for_all_and_lets_nobody_begin() -> None:
    turns, go_on, said = SharedLock(), threading.Event(), []

    def compute(name: str) -> None:
        with turns.shared():
            said.append(name)
            go_on.wait(20)

    def change(name: str) -> None:
        with turns.alone():
            said.append(name)

    first, second = start(compute, "first"), start(compute, "second")
    while len(said) < 2:
        pass
    alone = start(change, "alone")
    assert blocked(alone)
    third, other = start(compute, "third"), start(change, "other")
    assert blocked(third)
    assert blocked(other)
    go_on.set()
    for each in (first, second, alone, third, other):
        each.result(20)
    assert sorted(said[:2]) == ["first", "second"]
    assert "alone" in said[2:4]
    assert sorted(said[2:]) == ["alone", "other", "third"]


def test_an_interrupt_while_it_waits_to_be_alone_lets_the_others_go_on() -> None:
    turns, computes, go_on = SharedLock(), threading.Event(), threading.Event()

    def compute() -> None:
        with turns.shared():
            computes.set()
            assert go_on.wait(PATIENCE)

    def interrupt(thread: int) -> None:
        while not turns._alone:  # it waits in the block that expects the interrupt
            time.sleep(MOMENT)
        signal.pthread_kill(thread, signal.SIGINT)

    first = start(compute)
    assert computes.wait(PATIENCE)
    waiting = start(interrupt, threading.get_ident())
    with pytest.raises(KeyboardInterrupt), turns.alone():
        pytest.fail("somebody computes")
    waiting.result(PATIENCE)
    go_on.set()
    first.result(PATIENCE)
    start(compute).result(PATIENCE)  # nobody is alone any more
    with turns.alone():
        pass
