"""A GGUF model in transformers: read in one go, its layers by name, dequantized for good."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import gguf
import numpy as np

_TURN = threading.RLock()
"""Held while the functions of the gguf package are replaced, which are every thread's."""


@contextmanager
def read_once() -> Iterator[None]:
    """Have transformers read a GGUF file's metadata once during the block, and make one map of names.

    Its loader reads them for the configuration, for the weights and for the tokenizer, element by element
    through `numpy.memmap`, and makes the same map anew for each module of the model. For SmolLM2 that is 14
    of 18 seconds (transformers 5). A release that loads otherwise finds nothing changed. Threads take turns.
    """
    with _TURN:
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


def layer_names(architecture: str, blocks: int) -> Callable[[str], str | None]:
    """Return the map from layers of transformers to tensors of a GGUF, None where there is none.

    Both names are without `.weight`; `architecture` is a `general.architecture`.
    """
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[architecture], blocks)
    # As convert_hf_to_gguf does for the language model inside of one that also sees.
    return lambda layer: table.get_name(layer.replace("language_model.", ""))


def forget_quantizer(model: Any) -> None:
    """Take the quantizer off a dequantized model: with it trainers refuse the model, and its directory."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name) if name in vars(model) else setattr(model, name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
