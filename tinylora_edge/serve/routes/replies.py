"""Replies in the shapes that OpenAI's clients read."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...runtime.pool.request import Answer, Finish, Piece, Token


def _made() -> int:
    return int(time.time())


def _name() -> str:
    return secrets.token_hex(12)


@dataclass(frozen=True)
class Reply:
    """The replies to one request: whole, or in chunks.

    Attributes:
        model: as the client named it.
        chat: whether it is a chat.
        name: of the reply.
        made: when it was begun, in seconds since 1970.
    """

    model: str
    chat: bool
    name: str = field(default_factory=_name)
    made: int = field(default_factory=_made)

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the reply with whole answers."""
        choices = []
        for index, answer in enumerate(answers):
            choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish.reason}
            choice["logprobs"] = self._logprobs(answer.tokens)
            if self.chat:
                choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
            else:
                choice["text"] = answer.text
            choices.append(choice)
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage([a.finish for a in answers])}

    def first(self, index: int) -> dict[str, Any]:
        """Return the chunk that begins an answer of a chat."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}})

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return the chunk of a piece."""
        said: dict[str, Any] = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
        return self._chunk(index, said | {"logprobs": self._logprobs(piece.tokens)})

    def last(self, index: int, finish: Finish) -> dict[str, Any]:
        """Return the chunk that ends an answer."""
        said: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return self._chunk(index, said | {"finish_reason": finish.reason})

    def cost(self, finishes: Sequence[Finish]) -> dict[str, Any]:
        """Return the chunk that says what all of it cost."""
        return {**self._head(self._chunk_kind), "choices": [], "usage": usage(finishes)}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.name}", "object": kind, "created": self.made, "model": self.model}

    def _chunk(self, index: int, said: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "finish_reason": None, "logprobs": None} | said
        return {**self._head(self._chunk_kind), "choices": [choice]}

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
