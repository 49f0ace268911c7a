"""Generators of onnxruntime-genai with a vector, which is given once, at the start, and never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime_genai as og

from ...basis import Basis
from ...formats.onnx_graph import INPUT_NAME, REQUIRED
from .genai import GenaiModel
from .rows import Rows, as_file

_ADAPTER = "tinylora"

# A genai_config.json may carry others, and a generator that only computes logits needs none of them.
_PLAIN: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 1,
    "top_p": 1.0,
}


class Feed:
    """Vectors in the form that a model's generators take: an adapter, or a model input.

    Args:
        model: whose generators take them.
        rows: what to feed; None for the base.
        basis: the basis of the rows.
    """

    def __init__(self, model: GenaiModel, rows: Rows | None, basis: Basis) -> None:
        self._input = self._adapters = None
        if model.flavour == REQUIRED:
            # Writeable, as genai demands, and alive while a generator is: genai keeps a pointer to it.
            self._input = np.zeros((1, basis.size), np.float32) if rows is None else rows.values.copy()
        elif rows is not None:
            self._adapters = og.Adapters(model.engine)
            with as_file(rows.adapter(basis)) as path:
                self._adapters.load(path, _ADAPTER)

    def give_to(self, generator: Any) -> None:
        """Give the vectors to a generator that has not computed anything yet."""
        if self._input is not None:
            generator.set_model_input(INPUT_NAME, self._input)
        if self._adapters is not None:
            generator.set_active_adapter(self._adapters, _ADAPTER)


def new_generator(model: GenaiModel, feed: Feed, **search: Any) -> Any:
    """Return a plain `onnxruntime_genai.Generator` that has its vectors. `feed` must outlive it."""
    params = og.GeneratorParams(model.engine)
    params.set_search_options(**{**_PLAIN, **search})
    generator = og.Generator(model.engine, params)
    feed.give_to(generator)
    return generator


def append_prompt(generator: Any, tokens: Sequence[int], pad: int) -> None:
    """Evaluate tokens of a single sequence.

    genai takes padding at the end of a prompt for no part of it, and gives the logits of what comes before:
    such an end goes in by itself, token by token.
    """
    end = len(tokens)
    while end > 1 and tokens[end - 1] == pad:
        end -= 1
    for part in (tokens[:end], *([token] for token in tokens[end:])):
        generator.append_tokens(np.asarray(part, np.int32))
