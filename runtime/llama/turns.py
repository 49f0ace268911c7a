"""Turns of what computes with a model and what changes the list of its adapters.

llama.cpp walks through the adapters of a model when a context with another set of them computes, and loading
or freeing one changes that list: it may only happen while no context computes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Many may compute at the same time, and one alone may change the list. Neither enters twice."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._computing = 0
        self._alone = False

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute, once nobody is alone."""
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._computing += 1
        try:
            yield
        finally:
            with self._changed:
                self._computing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be alone: whoever computes ends first, and nobody begins meanwhile."""
        mine = False
        try:
            with self._changed:
                while self._alone:
                    self._changed.wait()
                self._alone = mine = True
                while self._computing:
                    self._changed.wait()
            yield
        finally:  # an interrupt may end the wait, and nobody would begin any more
            if mine:
                with self._changed:
                    self._alone = False
                    self._changed.notify_all()
