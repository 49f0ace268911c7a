"""Completions as dictionaries, shaped as llama-cpp-python and OpenAI's API shape them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

from ..answers import Text

Step = tuple[str, str | None]
"""A piece of text for each token, and at the end the rest with the reason: `stop` or `length`."""


def steps_of(
    tokens: Generator[int, None, str], speak: Callable[[int], bytes], stop: Sequence[str]
) -> Generator[Step, None, None]:
    """Yield the steps of a completion as its tokens come.

    Args:
        tokens: token ids; what they return is why they ended.
        speak: gives the bytes that each token adds.
        stop: texts that end the answer and are no part of it.
    """
    text, reason = Text([each for each in stop if each]), "stop"
    with closing(tokens):
        while not text.stopped:
            try:
                token = next(tokens)
            except StopIteration as end:
                reason = end.value
                break
            yield text.add(speak(token)).text, None
    yield text.rest().text, reason


class Completion:
    """A completion of a model's, in chunks or whole; a chat's, or one of plain text."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self._chat = chat
        self._common: dict[str, Any] = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4()}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def chunks(self, steps: Generator[Step, None, None]) -> Generator[dict[str, Any], None, None]:
        """Yield a chunk for each piece of text, the last one with the reason."""
        with closing(steps):
            if self._chat:
                self._common["object"] = "chat.completion.chunk"
                yield self._choice({"delta": {"role": "assistant"}}, None)
            for text, reason in steps:
                if text:
                    yield self._choice({"delta": {"content": text}} if self._chat else {"text": text}, None)
                if reason:
                    yield self._choice({"delta": {}} if self._chat else {"text": ""}, reason)

    def whole(self, steps: Generator[Step, None, None], prompt_tokens: int) -> dict[str, Any]:
        """Return the whole completion."""
        found = list(steps)
        text, count = "".join(piece for piece, _ in found), len(found) - 1
        content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": count,
            "total_tokens": prompt_tokens + count,
        }
        return {**self._choice(content, found[-1][1]), "usage": usage}

    def _choice(self, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
        return {**self._common, "choices": [choice]}
