"""llama.cpp's own messages: when they are not for the user, and signals that arrive while one is written.

llama-cpp-python writes them in a callback from C. What a signal's handler raises in there, such as
KeyboardInterrupt, ctypes drops, and prints unless stderr is redirected: of interrupts during a load two in
three were lost.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_cpp._logger import logger

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def quiet() -> Iterator[None]:
    """Hide llama.cpp's notes, unless `verbose` was asked for; signals wait, see `signals_wait`.

    It notes where each of the hundreds of tensors of an adapter goes, and warns of more KV cells than the
    model's context, which here are many sequences' and not one's. llama-cpp-python prints warnings as if they
    were errors (its table of levels is off by one).
    """
    level = logger.level
    if level > logging.DEBUG:
        logger.setLevel(logging.CRITICAL)
    try:
        with signals_wait():
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let signals that have a handler in Python wait until the block ends; it is called then.

    In another thread than the main one, which handles them, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: Any) -> None:
        arrived.append(number)

    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)
