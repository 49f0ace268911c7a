"""The log of llama.cpp: its levels, and signals that arrive while it writes.

llama-cpp-python's table of levels is off by one, so that it prints warnings as if they were errors, where
`verbose=False` asked for silence: that a sliding window has a cache of full size, that a batch has more KV
cells than the model's context. Here the level of warnings is put right.

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

from llama_cpp._logger import GGML_LOG_LEVEL_TO_LOGGING_LEVEL

_WARN = 3  # GGML_LOG_LEVEL_WARN in ggml.h
GGML_LOG_LEVEL_TO_LOGGING_LEVEL[_WARN] = logging.WARNING

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


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
