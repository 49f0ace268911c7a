"""Token ids of a prompt, exactly as `create_chat_completion` would evaluate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_chat_format
from numpy.typing import NDArray

from ...errors import VectorError
from .model import TinyLoraLlama

Prompt = str | Sequence[Mapping[str, str]]
"""Plain text, or chat messages with `role` and `content`."""


def encode(llm: TinyLoraLlama, prompt: Prompt) -> NDArray[np.int32]:
    """Return the token ids of a prompt: int32 [n].

    Chat messages go through the model's own chat handler, so that what is trained and measured is what
    the device will run.

    Raises:
        VectorError: chat messages for a model without a chat template or `chat_format`.
    """
    if isinstance(prompt, str):
        return np.array(llm.tokenize(prompt.encode(), special=True), np.int32)
    if llm.chat_handler is None and llm.chat_format == "llama-2" and not _has_template(llm):
        raise VectorError(
            "the model has no chat template, so chat messages cannot be rendered: use text prompts, or load "
            "it with chat_format=..."
        )
    handler = (
        llm.chat_handler
        or llm._chat_handlers.get(llm.chat_format)
        or llama_chat_format.get_chat_completion_handler(llm.chat_format)
    )
    try:
        handler(llama=_Recorder(llm), messages=[dict(message) for message in prompt])
    except _Recorded as recorded:
        return np.array(recorded.tokens, np.int32)
    raise VectorError(f"chat format {llm.chat_format!r} does not render prompts as text")


def decode(llm: TinyLoraLlama, tokens: NDArray[np.int32]) -> str:
    """Return the text of generated tokens, special ones left out."""
    data: bytes = llm.detokenize(tokens.tolist())
    return data.decode("utf-8", errors="replace")


class _Recorded(Exception):  # noqa: N818 - it carries a result, not an error
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens


class _Recorder:
    """Stands in for the model while a chat handler renders, and stops it where it would generate."""

    def __init__(self, llm: TinyLoraLlama) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def create_completion(self, prompt: list[int] | str, **_: Any) -> None:
        tokens = self._llm.tokenize(prompt.encode(), special=True) if isinstance(prompt, str) else prompt
        raise _Recorded(tokens)


def _has_template(llm: TinyLoraLlama) -> bool:
    return "tokenizer.chat_template" in llm.metadata
