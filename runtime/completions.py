"""Completions in OpenAI's shapes, whole and in chunks: those of a model, and those of a server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .answers import Answer, Finish, Piece, Token
from .tools import ToolCall


@dataclass(frozen=True)
class Reply:
    """The replies to one request, in OpenAI's shapes: whole, or in chunks."""

    model: str
    chat: bool
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    made: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the reply with whole answers."""
        choices = []
        for index, answer in enumerate(answers):
            choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish.reason}
            choice["logprobs"] = self._logprobs(answer.tokens)
            if self.chat:
                content = None if answer.calls and not answer.text else answer.text
                choice["message"] = {"role": "assistant", "content": content, "refusal": None}
                if answer.calls:
                    choice["message"]["tool_calls"] = [self._call(index, call) for call in answer.calls]
            else:
                choice["text"] = answer.text
            choices.append(choice)
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage([a.finish for a in answers])}

    def chunks(self, index: int, what: Piece | Finish) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a piece, or of the end of an answer: a call is its name, and its arguments."""
        calls = what.calls if isinstance(what, Piece) else ()
        if isinstance(what, Finish) or what.text or what.tokens:
            yield self.chunk(index, what, {"content": what.text} if isinstance(what, Piece) else {})
        for call in calls:
            made = self._call(index, call)
            made["function"]["arguments"] = ""
            for part in (made, {"function": {"arguments": call.arguments}}):
                yield self.chunk(index, None, {"tool_calls": [{"index": call.index, **part}]})

    def chunk(self, index: int, what: Piece | Finish | None, delta: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk: in a chat, what it adds to the message."""
        choice: dict[str, Any] = {
            "index": index,
            "finish_reason": what.reason if isinstance(what, Finish) else None,
            "logprobs": self._logprobs(what.tokens) if isinstance(what, Piece) else None,
        }
        if self.chat:
            choice["delta"] = delta
        else:
            choice["text"] = what.text if isinstance(what, Piece) else ""
        return {**self._head(self._chunk_kind), "choices": [choice]}

    def _call(self, index: int, call: ToolCall) -> dict[str, Any]:
        """Return a call of an answer in OpenAI's shape."""
        return {
            "id": f"call_{self.name}_{index}_{call.index}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def cost(self, finishes: Sequence[Finish]) -> dict[str, Any]:
        """Return the chunk that says what all of it cost."""
        return {**self._head(self._chunk_kind), "choices": [], "usage": usage(finishes)}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.name}", "object": kind, "created": self.made, "model": self.model}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not tokens:
            return None
        if self.chat:
            content = [
                {
                    **_described(token.data, token.logprob),
                    "top_logprobs": [_described(data, logprob) for data, logprob in token.likeliest],
                }
                for token in tokens
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [_shown(token.data) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{_shown(data): p for data, p in token.likeliest} for token in tokens],
        }


def usage(finishes: Sequence[Finish]) -> dict[str, Any]:
    """Return what answers to one prompt cost, in tokens."""
    prompt = max((finish.prompt_tokens for finish in finishes), default=0)
    completion = sum(finish.completion_tokens for finish in finishes)
    cached = max((finish.cached_tokens for finish in finishes), default=0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _described(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _shown(data), "logprob": logprob, "bytes": list(data)}


def _shown(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
