"""Bodies of requests in OpenAI's shapes, checked, as what a pool is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FrameError, RequestError
from ..runtime.answers import SamplingOptions, sampling_of
from ..tasks import Prompt
from ..wire import text
from .access import Limits

_CHOICES = 8  # answers to one prompt, at most
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_OF_CALLS = ("tool_calls", "tool_call_id")  # of a message
_TEXT, _INTEGER, _NUMBER, _BOOL = (str,), (int,), (int, float), (bool,)
_FIELDS: dict[str, tuple[type, ...]] = {
    "model": _TEXT,
    "max_tokens": _INTEGER,
    "max_completion_tokens": _INTEGER,
    "n": _INTEGER,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "seed": _INTEGER,
    "stop": (str, list),
    "stream": _BOOL,
    "stream_options": (dict,),
    "logprobs": (bool, int),
    "top_logprobs": _INTEGER,
    "user": _TEXT,
    "vector": _TEXT,
    "response_format": (dict,),
    "tools": (list,),
    "tool_choice": (str, dict),
    "parallel_tool_calls": _BOOL,
}
_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "object", list: "list"}
_NOT_HERE: dict[str, tuple[object, ...]] = {  # name -> values that ask for nothing
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

    `model` may have `@user` behind it; `user` and `vector` are "" where the body has none; `usage` asks for
    what it cost, at the end of a stream.
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
    """Return what a chat completion's or a completion's body asks for. RequestError: it cannot be had."""
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object")
    for name, nothing in _NOT_HERE.items():
        if body.get(name) not in nothing:
            raise RequestError(f"{name} is not supported here", param=name, code="unsupported_parameter")
    given = {name: body[name] for name in _FIELDS if body.get(name) is not None}
    if "tools" in given and not chat:
        raise RequestError("tools are for chats", param="tools", code="unsupported_parameter")
    for name, value in given.items():
        kinds = _FIELDS[name]
        if type(value) not in kinds:
            raise RequestError(f"{name} is no {' and no '.join(_WORDS[kind] for kind in kinds)}", param=name)
    if "model" not in given:
        raise RequestError("model is missing", param="model")
    return Asked(
        model=given["model"],
        prompt=_messages(body) if chat else _prompt(body),
        chat=chat,
        options=_options(given, limits, chat=chat),
        choices=_within(given, "n", 1, _CHOICES),
        stream=given.get("stream", False),
        usage=bool(given.get("stream_options", {}).get("include_usage")),
        user=given.get("user", ""),
        vector=given.get("vector", ""),
    )


def read_frame(vector: object) -> bytes:
    """Return the frame in a text of a body or a header. RequestError: it is none."""
    if not isinstance(vector, str):
        raise RequestError("vector is no text: send a frame as base64url", param="vector")
    try:
        return text.decode(vector)
    except FrameError as error:
        raise RequestError(str(error), param="vector") from None


def _options(given: dict[str, Any], limits: Limits, *, chat: bool) -> SamplingOptions:
    longest = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    options: SamplingOptions = {
        "max_tokens": _within(given, longest, limits.tokens, limits.tokens),
        "logprobs": _logprobs(given, chat=chat),
        "schema": _schema(given.get("response_format", {"type": "text"})),
    }
    if "temperature" in given:
        options["temperature"] = float(given["temperature"])
    if "top_p" in given:
        options["top_p"] = float(given["top_p"])
    if "seed" in given:
        options["seed"] = given["seed"] % (1 << 64)  # OpenAI takes negative ones
    if "stop" in given:
        if not all(isinstance(each, str) for each in given["stop"]):
            raise RequestError("stop is no list of texts", param="stop")
        options["stop"] = given["stop"]
    for name in ("tools", "tool_choice", "parallel_tool_calls") if chat else ():
        if name in given:
            options[name] = given[name]
    sampling_of(options)
    return options


def _within(given: dict[str, Any], name: str, default: int, most: int) -> int:
    value: int = given.get(name, default)
    if not 1 <= value <= most:
        raise RequestError(f"{name} is {value}: it must be from 1 to {most}", param=name)
    return value


def _logprobs(given: dict[str, Any], *, chat: bool) -> int | None:
    wanted, top = given.get("logprobs"), given.get("top_logprobs")
    if wanted is not None and isinstance(wanted, bool) != chat:
        raise RequestError(f"logprobs is no {'true or false' if chat else 'integer'}", param="logprobs")
    if not chat:
        return wanted
    if top is not None and not wanted:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return top or 0 if wanted else None


def _schema(response_format: dict[str, Any]) -> Mapping[str, Any] | None:
    match response_format:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}} if schema:
            return schema
    raise RequestError(
        "response_format is none of {'type': 'text'}, {'type': 'json_object'} and "
        "{'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}",
        param="response_format",
    )


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
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
        said = {"role": _ROLES[role], "content": _content(message.get("content"), f"{where}.content")}
        result.append(said | {name: message[name] for name in _OF_CALLS if message.get(name)})
    return result


def _content(content: Any, where: str) -> str:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(said)}:
                texts.append(said)
            case {"type": "text", "text": None}:
                pass
            case _:
                raise RequestError(f"{where} is no text, and no list of texts", param=where)
    return "".join(texts)


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise RequestError("prompt is no text: send one text a request", param="prompt")
    return prompt
