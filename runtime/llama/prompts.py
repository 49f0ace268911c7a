"""Names of before for what `TinyLoraLlama.encode` and its `vocabulary` do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...tasks import Prompt, Sample


def encode(llm: Any, prompt: Prompt | Sample, *, raw: bool = False) -> NDArray[np.int32]:
    """As the vocabulary has it."""
    return np.array(llm.encode(prompt, raw=raw)[0], np.int32)


def encode_with_stops(
    llm: Any, prompt: Prompt | Sample, *, raw: bool = False
) -> tuple[NDArray[np.int32], list[str]]:
    """As the vocabulary has it."""
    tokens, stops = llm.encode(prompt, raw=raw)
    return np.array(tokens, np.int32), stops


def has_template(llm: Any) -> bool:
    """As the vocabulary has it."""
    return bool(llm.vocabulary.has_template)


def decode(llm: Any, tokens: Any) -> str:
    """As the vocabulary has it."""
    return str(llm.vocabulary.decode(tokens))


def turn_end(llm: Any) -> int:
    """As the vocabulary has it."""
    return int(llm.vocabulary.turn_end)
