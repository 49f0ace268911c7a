"""Completions as dictionaries, shaped as llama-cpp-python and OpenAI's API shape them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from ..stops import Stops

Step = tuple[str, str | None]
"""A piece of text, and at the end the reason: `stop` or `length`."""


class CompletionWriter:
    """Writer of one completion: its chunks, or the whole.

    Args:
        model: its name in the completion.
        prompt_tokens: how many the prompt had.
        chat: a chat completion, or one of plain text.
    """

    def __init__(self, model: str, prompt_tokens: int, *, chat: bool) -> None:
        self._chat = chat
        self._prompt_tokens = prompt_tokens
        kind = "chat.completion" if chat else "text_completion"
        self._common: dict[str, Any] = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4()}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def chunks(self, steps: Iterator[Step]) -> Iterator[dict[str, Any]]:
        """Yield a chunk for each piece of text, the last one with the reason."""
        if self._chat:
            self._common["object"] = "chat.completion.chunk"
            yield self._chunk({"delta": {"role": "assistant"}}, None)
        for text, reason in steps:
            if text:
                yield self._chunk({"delta": {"content": text}} if self._chat else {"text": text}, None)
            if reason:
                yield self._chunk({"delta": {}} if self._chat else {"text": ""}, reason)

    def whole(self, steps: Iterator[Step], generated: Callable[[], int]) -> dict[str, Any]:
        """Return the whole completion; `generated` counts its tokens at the end."""
        texts, reason = [], None
        for text, reason in steps:  # noqa: B007 - the last one counts
            texts.append(text)
        text = "".join(texts)
        content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        count = generated()
        usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": count,
            "total_tokens": self._prompt_tokens + count,
        }
        return {**self._chunk(content, reason), "usage": usage}

    def _chunk(self, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
        return {**self._common, "choices": [choice]}


def steps_of(
    tokens: Generator[int, None, str], text: Text, counted: list[int]
) -> Generator[Step, None, None]:
    """Yield the steps of a completion as its tokens come; at the end why it ended.

    Args:
        tokens: token ids; what they return is why they ended.
        text: what pieces of the answer are told from tokens, stop strings kept out.
        counted: takes the tokens that were generated.
    """
    reason = "length"
    with closing(tokens):
        try:
            while not text.stopped:
                token = next(tokens)
                counted.append(token)
                yield text.add(token), None
            reason = "stop"
        except StopIteration as end:
            reason = end.value
    yield text.rest(), reason


def chunks_of(completion: CompletionWriter, steps: Generator[Step, None, None]) -> Generator[Any, Any, None]:
    """Yield the chunks of a completion; closing them closes the steps."""
    with closing(steps):
        yield from completion.chunks(steps)


class Text:
    """The text of a completion as it comes in, up to the first of some stop strings.

    Args:
        decode: text that a token adds, which may be empty while a character is incomplete.
        stop: strings that end the text and are no part of it.
    """

    def __init__(self, decode: Callable[[int], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = Stops([text for text in stop if text])

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        return self._stops.stopped

    def add(self, token: int) -> str:
        """Return the text that is certain now; what may begin a stop string is held back."""
        return self._stops.add(self._decode(token))

    def rest(self) -> str:
        """Return what was held back, at the end."""
        return self._stops.rest()
