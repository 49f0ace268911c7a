"""A lock that many share, or one has alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """Many share something at the same time, or one has it alone. Nobody enters twice."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Share it, once nobody is alone."""
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be alone: whoever shares it ends first, and nobody begins meanwhile."""
        mine = False
        try:
            with self._changed:
                while self._alone:
                    self._changed.wait()
                self._alone = mine = True
                while self._sharing:
                    self._changed.wait()
            yield
        finally:  # an interrupt may end the wait, and nobody would begin any more
            if mine:
                with self._changed:
                    self._alone = False
                    self._changed.notify_all()
