"""llama.cpp's own messages, and when they are not for the user."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from llama_cpp._logger import logger


@contextmanager
def quiet() -> Iterator[None]:
    """Hide llama.cpp's notes, unless `verbose` was asked for.

    It notes where each of the hundreds of tensors of an adapter goes, and warns of more KV cells than the
    model's context, which here are many sequences' and not one's. llama-cpp-python prints warnings as if they
    were errors (its table of levels is off by one).
    """
    level = logger.level
    if level > logging.DEBUG:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
