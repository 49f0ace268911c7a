"""Chat completions and completions: the body, whose vector answers, the reply or its events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ..errors import RequestError, RollbackError
from ..runtime import SampledAnswer
from ..runtime.answers import Answer, Finish, Piece, Reply, SamplingOptions, sampling_of, usage
from ..runtime.pool import AnswerStream
from ..runtime.turns import Who
from ..tasks import Prompt
from .access import Limits, RefusedError
from .requests import OPEN, caller, log_fields, read_frame, read_json, refusal
from .service import Service, going_down, wrong_user
from .store import check_user, is_user

VECTOR_HEADER = "x-tinylora-vector"

_LAST_EVENT_S = 3.0  # of a server that goes down: a stream without its error event is cut then
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
_TYPES: dict[str, tuple[type, ...]] = {
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
_UNSUPPORTED: dict[str, tuple[object, ...]] = {  # name -> values that have no effect
    "functions": (None, []),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "audio": (None,),
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
}


async def complete(request: Request, service: Service, *, chat: bool) -> Response:
    """Answer `POST /v1/chat/completions`, or `POST /v1/completions`."""
    start = time.perf_counter()
    body = read_body(await read_json(request, service), service.limits, chat=chat)
    streams = await _begin(body, request, service)
    reply = Reply(body.model, body.chat)
    log_fields(request).update(id=reply.name, stream=body.stream)

    if body.stream:
        events = _events(request, service, reply, streams, start, with_usage=body.usage)
        return EventSourceResponse(events, sep="\n", shutdown_grace_period=_LAST_EVENT_S)
    try:
        answers = await _whole(request, streams)
    finally:
        _end(request, service, streams)
    return JSONResponse(reply.whole(answers))


async def _begin(body: Body, request: Request, service: Service) -> list[AnswerStream]:
    """Return the answers to a request, which have begun, under the vector that it names.

    Raises:
        RefusedError: another user's vector, or one that the store has not, or another model.
        VectorError, RequestError, OverloadError, StoreError, TinyLoraError: see `Pool.chat`.
    """
    name, at, named = body.model.partition("@")
    sender, header = caller(request), request.headers.get(VECTOR_HEADER, "")
    if name != service.name:
        raise RefusedError(
            404,
            f"there is no model {body.model[:80]!r}: this server has {service.name!r}, and "
            f"{service.name}@USER for the vector of a user",
            "model_not_found",
            "model",
        )
    if at and sender.user not in (None, check_user(named)):
        raise wrong_user(named)
    if body.vector and header and body.vector != header:
        raise RequestError("body and header have different vectors: send one of them", param="vector")
    who = sender.who_of(named, body.user)
    service.places.move(sender.who, who, OPEN)
    sender.who = who
    if text := body.vector or header:
        user = named or sender.user or body.user
        return await _start(body, service, who, check_user(user) if user else "", read_frame(text))
    if not at:
        return await _start(body, service, who, sender.user or body.user, None)
    frame = await _stored(service, named)
    try:
        return await _start(body, service, who, named, frame)
    except RollbackError:
        newer = await _stored(service, named)
        if newer == frame:
            raise
        return await _start(body, service, who, named, newer)  # it was replaced meanwhile


async def _stored(service: Service, user: str) -> bytes:
    found = None if service.store is None else await service.with_store(lambda store: store.get(user))
    if found is None:
        raise RefusedError(
            404,
            f"user {user!r} has no vector here: put one with PUT /v1/vectors/{user}, or ask for "
            f"{service.name!r}, the base",
            "model_not_found",
            "model",
        )
    return found.frame


async def _start(
    body: Body, service: Service, who: Who, user: str, vector: bytes | None
) -> list[AnswerStream]:
    if service.draining:
        raise going_down()
    streams = [
        service.pool.stream(
            body.prompt,
            raw=not body.chat,
            user=user,
            tenant=who.tenant,
            account=who.account,
            vector=vector,
            choice=choice,
            **body.options,
        )
        for choice in range(body.choices)
    ]
    try:
        for stream in streams:
            await stream.start()
    except BaseException:
        for stream in streams:
            stream.close()
        raise
    return streams


async def _whole(request: Request, streams: Sequence[AnswerStream]) -> list[Answer]:
    """Return the whole answers. ClientDisconnect: the client left before."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answers = asyncio.gather(*(stream.answer() for stream in streams))
    left = asyncio.create_task(leaves())
    both: tuple[asyncio.Future[Any], ...] = (answers, left)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise ClientDisconnect
        return answers.result()
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def _events(
    request: Request,
    service: Service,
    reply: Reply,
    streams: Sequence[AnswerStream],
    start: float,
    *,
    with_usage: bool,
) -> AsyncIterator[dict[str, str]]:
    begun = False
    try:
        if reply.chat:
            for index in range(len(streams)):
                yield _event(reply.chunk(index, None, {"role": "assistant", "content": ""}))
        async for index, part in _merged(streams):
            if not begun:
                begun = True
                service.metrics.first_token.observe(time.perf_counter() - start)
            for chunk in reply.chunks(index, part):
                yield _event(chunk)
        if with_usage:
            yield _event(reply.cost([stream.finish for stream in streams if stream.finish is not None]))
        yield {"data": "[DONE]"}
    except Exception as error:  # the response has begun: the error is its last event
        yield {"data": bytes(refusal(request, service, error).body).decode()}
    finally:
        _end(request, service, streams)


async def _merged(streams: Sequence[AnswerStream]) -> AsyncIterator[tuple[int, Piece | Finish]]:
    """Yield the pieces of all answers as they come, and the end of each, with the answer's index."""

    async def step(index: int) -> tuple[int, Piece | Finish | None]:
        async for piece in streams[index]:
            return index, piece
        return index, None

    steps = {asyncio.create_task(step(index)) for index in range(len(streams))}
    try:
        while steps:
            done, steps = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index, piece = task.result()
                if piece is not None:
                    yield index, piece
                    steps.add(asyncio.create_task(step(index)))
                elif (finish := streams[index].finish) is not None:
                    yield index, finish
    finally:
        for task in steps:
            task.cancel()


def _event(content: Any) -> dict[str, str]:
    return {"data": json.dumps(content, ensure_ascii=False, separators=(",", ":"))}


def _end(request: Request, service: Service, streams: Sequence[AnswerStream]) -> None:
    """Give up what was not read; count and log what was, and remember it for clicks."""
    for stream in streams:
        stream.close()
    finishes = [stream.finish for stream in streams if stream.finish is not None]
    tokens, vector = usage(finishes), streams[0].vector
    counts = {
        "prompt": tokens["prompt_tokens"],
        "cached": tokens["prompt_tokens_details"]["cached_tokens"],
        "completion": tokens["completion_tokens"],
    }
    for kind, count in counts.items():
        service.metrics.tokens.labels(kind).inc(count)
    fields = log_fields(request)
    fields |= {f"{kind}_tokens": count for kind, count in counts.items()}
    fields["sequence"] = None if vector is None else vector.sequence
    fields["finish"] = [finish.reason for finish in finishes]
    if service.feedback is None:
        return
    for index, stream in enumerate(streams):
        answered = stream.request
        if stream.finish is not None and answered is not None and is_user(answered.user):
            name = f"{fields['id']}:{index}" if index else fields["id"]
            answer = SampledAnswer(
                answered.prompt, stream.finish.tokens, answered.vector, answered.sampling.temperature
            )
            service.feedback.remember(name, answered.user, answer)


@dataclass(frozen=True)
class Body:
    """The body of a request for completions.

    `model` may have `@user` behind it; `user` and `vector` are "" where the body has none; `usage` asks for
    the count of tokens at the end of a stream.
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


def read_body(body: Any, limits: Limits, *, chat: bool) -> Body:
    """Return a chat completion's or a completion's body. RequestError: something in it is not valid."""
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object")
    for name, nothing in _UNSUPPORTED.items():
        if body.get(name) not in nothing:
            raise RequestError(f"{name} is not supported here", param=name, code="unsupported_parameter")
    fields = {name: body[name] for name in _TYPES if body.get(name) is not None}
    if "tools" in fields and not chat:
        raise RequestError("tools are for chats", param="tools", code="unsupported_parameter")
    for name, value in fields.items():
        if type(value) not in _TYPES[name]:
            kinds = " and no ".join(_WORDS[kind] for kind in _TYPES[name])
            raise RequestError(f"{name} is no {kinds}", param=name)
    if "model" not in fields:
        raise RequestError("model is missing", param="model")
    return Body(
        model=fields["model"],
        prompt=_messages(body) if chat else _prompt(body),
        chat=chat,
        options=_options(fields, limits, chat=chat),
        choices=_within(fields, "n", 1, _CHOICES),
        stream=fields.get("stream", False),
        usage=bool(fields.get("stream_options", {}).get("include_usage")),
        user=fields.get("user", ""),
        vector=fields.get("vector", ""),
    )


def _options(fields: dict[str, Any], limits: Limits, *, chat: bool) -> SamplingOptions:
    longest = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    options: SamplingOptions = {
        "max_tokens": _within(fields, longest, limits.tokens, limits.tokens),
        "logprobs": _logprobs(fields, chat=chat),
        "schema": _schema(fields.get("response_format", {"type": "text"})),
    }
    if not all(isinstance(each, str) for each in fields.get("stop", "")):
        raise RequestError("stop is no list of texts", param="stop")
    if "temperature" in fields:
        options["temperature"] = float(fields["temperature"])
    if "seed" in fields:
        options["seed"] = fields["seed"] % (1 << 64)  # OpenAI takes negative ones
    for name in ("top_p", "stop", "tools", "tool_choice", "parallel_tool_calls"):
        if name in fields and (chat or name in ("top_p", "stop")):
            options[name] = fields[name]
    sampling_of(options)
    return options


def _within(fields: dict[str, Any], name: str, default: int, most: int) -> int:
    value: int = fields.get(name, default)
    if not 1 <= value <= most:
        raise RequestError(f"{name} is {value}: it must be from 1 to {most}", param=name)
    return value


def _logprobs(fields: dict[str, Any], *, chat: bool) -> int | None:
    wanted, top = fields.get("logprobs"), fields.get("top_logprobs")
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
        content = _content(message.get("content"), f"{where}.content")
        calls = {name: message[name] for name in _OF_CALLS if message.get(name)}
        result.append({"role": _ROLES[role], "content": content} | calls)
    return result


def _content(content: Any, where: str) -> str:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
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
