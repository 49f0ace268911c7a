"""A GGUF file as transformers reads it: once, where its loader would do so for every thing that it asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import gguf
import numpy as np

_LOCK = threading.RLock()
"""Held for a block: what it changes is everybody's, and is put back in the order in which it was changed."""


@contextmanager
def read_once() -> Iterator[None]:
    """Have transformers read a GGUF file's metadata once during the block, and make one map of names.

    Its loader reads them for the configuration, for the weights and for the tokenizer, element by element
    through `numpy.memmap`, and makes the same map anew for each module of the model. For SmolLM2 that is 14
    of 18 seconds (transformers 5). A release that loads otherwise finds nothing changed. Threads take turns.
    """
    with _LOCK:
        reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map

        class Reader(reader):  # type: ignore[valid-type, misc]
            """The library's reader over a plain array: every part of a `memmap` is dear to make."""

            def __setattr__(self, name: str, value: Any) -> None:
                super().__setattr__(name, np.asarray(value) if isinstance(value, np.memmap) else value)

        gguf.GGUFReader = cache(Reader)  # type: ignore[assignment, misc]
        gguf.get_tensor_name_map = cache(name_map)
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map  # type: ignore[misc]
