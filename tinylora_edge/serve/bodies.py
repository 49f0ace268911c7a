"""Bodies in OpenAI's shapes: requests, checked, as what a pool is asked, and the replies to them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import FrameError, RequestError
from ..runtime.pool.request import Answer, Finish, Piece, SamplingOptions, Token, sampling_of
from ..tasks import Prompt
from ..wire import text
from .access import Limits

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_NOT_HERE = {  # name -> values that ask for nothing
    "tools": (None, []),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "audio": (None,),
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
}


@dataclass(frozen=True)
class Asked:
    """A completion that is asked for.

    Attributes:
        model: its name, maybe with `@user` behind it.
        prompt: chat messages, or text that is continued.
        chat: whether it is a chat.
        options: of the sampling.
        choices: answers.
        stream: whether the answer comes in pieces.
        usage: whether the pieces end with what they cost.
        user: whom the body names; empty for nobody.
        vector: the vector in the body, as text; empty for none.
    """

    model: str
    prompt: Prompt
    chat: bool
    options: SamplingOptions
    choices: int
    stream: bool
    usage: bool
    user: str
    vector: str


def read_body(body: Any, limits: Limits, *, chat: bool) -> Asked:
    """Return what a body asks for.

    Args:
        body: the JSON of a chat completion's or a completion's request.
        limits: of the server.
        chat: which of the two.

    Raises:
        RequestError: a part is missing, of another type, out of its range or not supported.
    """
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object")
    for name, nothing in _NOT_HERE.items():
        if body.get(name) not in nothing:
            raise RequestError(f"{name} is not supported here", param=name, code="unsupported_parameter")
    choices = 1 if (given := _number(body, "n", int)) is None else given
    if not 1 <= choices <= limits.choices:
        raise RequestError(f"n is {choices}: it must be from 1 to {limits.choices}", param="n")
    stream_options = body.get("stream_options") or {}
    if not isinstance(stream_options, dict):
        raise RequestError("stream_options is no object", param="stream_options")
    options = _options(body, limits, chat=chat)
    sampling_of(options)
    return Asked(
        model=_text(body, "model"),
        prompt=_messages(body) if chat else _prompt(body),
        chat=chat,
        options=options,
        choices=choices,
        stream=bool(_number(body, "stream", bool)),
        usage=bool(stream_options.get("include_usage")),
        user=_text(body, "user", ""),
        vector=_text(body, "vector", ""),
    )


def read_frame(vector: object) -> bytes:
    """Return the frame in a text of a body or a header.

    Raises:
        RequestError: it is none.
    """
    if not isinstance(vector, str):
        raise RequestError("vector is no text: send a frame as base64url", param="vector")
    try:
        return text.decode(vector)
    except FrameError as error:
        raise RequestError(str(error), param="vector") from None


def _options(body: Mapping[str, Any], limits: Limits, *, chat: bool) -> SamplingOptions:
    options: SamplingOptions = {"max_tokens": _max_tokens(body, limits)}
    for name in ("temperature", "top_p"):
        if (value := _number(body, name, float)) is not None:
            options[name] = value
    if (seed := _number(body, "seed", int)) is not None:
        options["seed"] = seed % (1 << 64)  # OpenAI takes negative ones
    stop = body.get("stop")
    if isinstance(stop, str) or (isinstance(stop, list) and all(isinstance(each, str) for each in stop)):
        options["stop"] = stop
    elif stop is not None:
        raise RequestError("stop is no text, and no list of texts", param="stop")
    options["logprobs"] = _logprobs(body) if chat else _number(body, "logprobs", int)
    options["schema"] = _schema(body.get("response_format"))
    return options


def _max_tokens(body: Mapping[str, Any], limits: Limits) -> int:
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    most = _number(body, name, int)
    if most is None:
        return limits.tokens
    if not 1 <= most <= limits.tokens:
        raise RequestError(f"{name} is {most}: it must be from 1 to {limits.tokens}", param=name)
    return int(most)


def _logprobs(body: Mapping[str, Any]) -> int | None:
    wanted, top = _number(body, "logprobs", bool), _number(body, "top_logprobs", int)
    if top is not None and not wanted:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return int(top or 0) if wanted else None


def _schema(response_format: Any) -> Mapping[str, Any] | None:
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {}
    if kind == "json_schema":
        named = response_format.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if isinstance(schema, dict) and schema:
            return schema
    raise RequestError(
        "response_format is none of {'type': 'text'}, {'type': 'json_object'} and "
        "{'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}",
        param="response_format",
    )


def _messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages is no list with a message at least", param="messages")
    result = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise RequestError(f"{where} is no object", param=where)
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(f"{where}.role is none of {', '.join(_ROLES)}", param=f"{where}.role")
        result.append({"role": _ROLES[role], "content": _content(message.get("content"), where)})
    return result


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(f"{where}.content is no text, and no list of texts", param=f"{where}.content")
        texts.append(part["text"])
    return "".join(texts)


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise RequestError("prompt is no text: send one text a request", param="prompt")
    return prompt


def _text(body: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = body.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        what = "missing" if value is None else "no text"
        raise RequestError(f"{name} is {what}", param=name)
    return value


def _number(body: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return a number, or a bool, under its name; None where there is none."""
    value = body.get(name)
    fine = value is None or type(value) is kind or (kind is float and type(value) is int)
    if not fine:
        what = {int: "integer", float: "number", bool: "true or false"}[kind]
        raise RequestError(f"{name} is no {what}", param=name)
    return float(value) if kind is float and value is not None else value


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
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    made: int = field(default_factory=lambda: int(time.time()))

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
