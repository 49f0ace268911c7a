"""A request for completions: who sends it, its body, whose vector answers, and the reply or error as JSON."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import errors
from ..errors import FrameError, RequestError, RollbackError, VectorError
from ..jsonio import parse_json
from ..runtime import SampledAnswer
from ..runtime.answers import LOGPROBS, Answer, Finish, Piece, Reply, schema_of, usage
from ..runtime.model import VectorSource
from ..runtime.pool import AnswerStream
from ..runtime.turns import Who
from ..tasks import Prompt
from ..vector import MicroVector
from ..wire import text
from .access import Limits, RefusedError
from .service import Service, going_down, wrong_user
from .store import check_user, is_user

LOG = logging.getLogger("tinylora_edge.serve")
T = TypeVar("T")
BYTES = "application/octet-stream"
_OPEN = "are open"  # what requests do, in errors of `Shares`: too many requests are open
# Error, status, and code of OpenAI's error object; the first that fits counts. "": the error's own code.
_FAILURES: tuple[tuple[type[BaseException], int, str], ...] = (
    (RequestError, 400, ""),
    (errors.OptionError, 400, "invalid_value"),
    (errors.SignatureError, 403, "vector_forged"),
    (RollbackError, 403, "vector_stale"),
    (errors.BasisMismatchError, 403, "vector_of_another_basis"),
    (errors.ChecksumError, 422, "vector_damaged"),
    (FrameError, 422, "vector_damaged"),
    (VectorError, 403, "vector_refused"),
    (errors.OverloadError, 429, "overloaded"),
    (errors.StoreError, 503, "store_unavailable"),
    (errors.TinyLoraError, 503, "unavailable"),
    (BaseException, 500, "internal_error"),
)
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
HEADERS = {
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
    401: {"Connection": "close"},  # a client without a key gets one answer a connection
}
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}\Z", re.ASCII)  # an id that a client or a proxy chose
_TENANT_DIGITS = 12  # digits of a tenant's hash that the log has
_LEFT = 499  # nginx's status of a request whose client left before the answer

_UPLOAD_S = 30.0  # time in which a body must arrive
_LAST_EVENT_S = 3.0  # when a server goes down, the time that a stream has for its error event
_STRICT = ConfigDict(strict=True)
_UNSUPPORTED: dict[str, tuple[object, ...]] = {  # name -> values that ask for nothing, which are accepted
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "audio": (None,),
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
}
_OF_CHATS: dict[str, tuple[object, ...]] = {"messages": (None, []), "tools": (None, [])}  # not of texts


@dataclass
class Caller:
    """Who sends a request.

    Attributes:
        key: SHA-256 of the API key; empty where the server needs none.
        user: the one user that the key stands for; None for any.
        who: account and tenant, whose places and turns the request takes. The tenant is the key's, and once
            the body is read, that of the user whom it names.
    """

    key: bytes = b""
    user: str | None = None
    who: Who = field(init=False)

    def __post_init__(self) -> None:
        self.who = Who(self.key.hex(), self.key.hex())

    def who_of(self, *users: str) -> Who:
        """Return the key's account, and its tenant for these users: a hash of their names. A user's key has
        one tenant. Without a key, the tenant is the account too."""
        if not self.key and not any(users):
            return self.who
        named = users if self.user is None else (self.user,)
        tenant = hashlib.sha256(self.key + json.dumps(named).encode()).hexdigest()
        return Who(self.key.hex() or tenant, tenant)


def find_caller(request: Request, service: Service) -> Caller:
    """Return who sends a request. RefusedError: no such key, or the request is to another host."""
    if service.api_keys is not None:
        return Caller(*service.api_keys.find(request.headers.get("authorization", "")))
    host = re.sub(r":[0-9]*\Z", "", request.headers.get("host", "")).strip("[]").lower()
    if service.hosts and host not in service.hosts:
        message = f"this server is not {host[:80]!r}: ask it as {', '.join(sorted(service.hosts))}"
        raise RefusedError(403, message, "wrong_host")
    return Caller()


def refusal(request: Request, service: Service, error: BaseException) -> JSONResponse:
    """Return the response to a request that fails, in OpenAI's form; log and count the reason."""
    status, content = failure(service, error)
    if content["param"] == "messages" and request.url.path.endswith("/v1/completions"):
        content["param"] = "prompt"
    request.state.log["error"] = content["code"]
    return JSONResponse({"error": content}, status, HEADERS.get(status))


def failure(service: Service, error: BaseException) -> tuple[int, dict[str, Any]]:
    """Return the status and OpenAI's object of an error; log and count it."""
    if service.draining and type(error) is errors.TinyLoraError:  # the pool says that it is closed
        error = going_down()
    if isinstance(error, RefusedError):
        status, code, message = error.status, error.code, error.message
    else:
        status, code = next(each[1:] for each in _FAILURES if isinstance(error, each[0]))
        code, message = code or str(getattr(error, "code", "")), str(error)
    if status == 500:
        LOG.error("internal error", exc_info=error)
        message = "the server failed; its log says how"
    if isinstance(error, errors.StoreError):  # its text names a file or a host of the operator
        LOG.error("store", extra={"fields": {"why": message}})
        message = "the store of vectors cannot be used: ask again in a moment"
    param = getattr(error, "param", "")
    if isinstance(error, VectorError):
        param = "vector"
        service.metrics.refused.labels(code).inc()
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return status, {"message": message, "type": kind, "param": param or None, "code": code}


async def unknown_route(request: Request, error: Exception) -> Response:
    """Refuse what has no route, or another method."""
    assert isinstance(error, HTTPException)
    message = f"this server has no route {request.method} {request.url.path[:80]}"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    raise RefusedError(error.status_code, message, code)


def content_type(request: Request) -> str:
    """Return the media type of a request's body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, service: Service) -> Any:
    """Return the JSON of a body."""
    kind = content_type(request)
    if kind != "application/json":  # pages of other sites cannot send it without a preflight request
        other = f", or {BYTES} for the bytes of a frame" if request.method == "PUT" else ""
        message = f"the body's type is {kind[:80]!r}: send Content-Type: application/json{other}"
        raise RefusedError(415, message, "unsupported_media_type")
    data = await read_bytes(request, service)
    try:
        return parse_json(data, limit=service.limits.body)
    except ValueError as error:
        message = f"the body is not JSON that this server reads: {error}"
        raise RequestError(message, code="invalid_json") from None


async def read_bytes(request: Request, service: Service) -> bytes:
    """Return a body. RefusedError: it is too large, or too slow."""
    most, data = service.limits.body, bytearray()
    try:
        async with asyncio.timeout(_UPLOAD_S):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise RefusedError(413, f"the body has more than {most:,} bytes", "body_too_large")
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {_UPLOAD_S:g} s", "body_too_slow") from None
    return bytes(data)


def only_field(body: object, name: str) -> object:
    """Return the value of a body that has one field. RequestError: it has another, or more."""
    if not isinstance(body, dict) or body.keys() != {name}:
        raise RequestError(f'the body must be an object with "{name}" alone', param=name)
    found: object = body[name]
    return found


def read_frame(vector: object) -> bytes:
    """Return the frame in a text of a body or a header. RequestError: it is not one."""
    if not isinstance(vector, str):
        raise RequestError("vector must be a text: send a frame as base64url", param="vector")
    try:
        return text.decode(vector)
    except FrameError as error:
        raise RequestError(str(error), param="vector") from None


class RequestMiddleware:
    """What surrounds all routes: the check of the caller, their places, errors as JSON, log and metrics.

    A request keeps the id of its header `X-Request-Id`, or gets one; the reply and the log have it. Handlers
    have `request.state.caller`, on routes below /v1/, and `request.state.log`, the fields of the request's
    line in the log, to which they add. No prompt, answer or user's name is among them.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), _LEFT
        service, request, placed = self._service, Request(scope), None
        named = request.headers.get("x-request-id", "")
        name = named if _REQUEST_ID.match(named) else secrets.token_hex(16)
        fields = request.state.log = dict[str, Any](request=name)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            if scope["path"].removeprefix(scope.get("root_path", "")).startswith("/v1/"):
                found = request.state.caller = find_caller(request, service)
                fields["tenant"] = found.who.tenant[:_TENANT_DIGITS]
                service.places.check(found.who, _OPEN)
                service.places.take(found.who)
                placed = found
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            pass  # nobody is left to be answered; the log gets the status `_LEFT`
        except Exception as error:
            if status != _LEFT:  # the response has begun
                raise
            await refusal(request, service, error)(scope, receive, sending)
        finally:
            if placed is not None:
                service.places.leave(placed.who)
                fields["tenant"] = placed.who.tenant[:_TENANT_DIGITS]  # again, as the body may name a user
            seconds, route = time.perf_counter() - start, getattr(scope.get("route"), "path", "none")
            service.metrics.requests.labels(route, str(status)).inc()
            service.metrics.seconds.labels(route).observe(seconds)
            line = {"method": scope["method"], "route": route, "status": status}
            LOG.info("request", extra={"fields": line | {"ms": round(seconds * 1e3, 1)} | fields})


async def complete(request: Request, service: Service, *, chat: bool) -> Response:
    """Answer `POST /v1/chat/completions`, or `POST /v1/completions`."""
    start = time.perf_counter()
    body = read_body(await read_json(request, service), chat=chat)
    streams = await _unless_left(request, _begin(body, request, service))
    reply = Reply(body.model, chat)
    request.state.log.update(id=reply.name, stream=body.stream)
    if body.stream:
        events = _events(request, service, reply, streams, start, body)
        return EventSourceResponse(events, sep="\n", shutdown_grace_period=_LAST_EVENT_S)
    try:
        answers = await _unless_left(request, _whole(streams))
        for index in range(len(streams)):
            await _remember(request, service, index, streams[index])
    finally:
        _end(request, service, streams)
    content: Callable[[], bytes] = partial(reply.encoded, answers)
    long = any(answer.tokens for answer in answers)  # log-probabilities of tokens may be megabytes of JSON
    data = await service.write(request.state.caller.who, content) if long else content()
    return Response(data, media_type="application/json")


async def _begin(body: Body, request: Request, service: Service) -> list[AnswerStream]:
    """Let a request take a place of its user's, and begin its answers under the vector that it names."""
    name, at, named = body.model.partition("@")
    sender, header = request.state.caller, request.headers.get("x-tinylora-vector", "")
    if name != service.name:
        message = f"there is no model {body.model[:80]!r}: this server has {service.name!r}, and "
        message += f"{service.name}@USER for the vector of a user"
        raise RefusedError(404, message, "model_not_found", "model")
    if at and sender.user not in (None, check_user(named)):
        raise wrong_user(named)
    if body.vector and header and body.vector != header:
        raise RequestError("body and header have different vectors: send one of them", param="vector")
    who = sender.who_of(named, body.user)
    service.places.move(sender.who, who, _OPEN)
    sender.who = who
    if text := body.vector or header:
        user = named or sender.user or body.user
        return await _start(body, service, who, check_user(user) if user else "", read_frame(text))
    if not at:
        return await _start(body, service, who, sender.user or body.user, None)
    return await _start(body, service, who, named, await _stored(service, who, named))


async def _stored(service: Service, who: Who, user: str) -> MicroVector | None:
    """Return a user's vector or, where they have none, the one that lies beneath every user's."""
    found: MicroVector | None = None
    if service.store is not None:
        policy = service.pool.policy
        found = await service.with_store(who, lambda store: store.admitted(user, policy))
    if found is None and service.under is None:
        message = f"user {user!r} has no vector here: put one with PUT /v1/vectors/{user}, or ask for "
        raise RefusedError(404, f"{message}{service.name!r}, the base", "model_not_found", "model")
    return service.under if found is None else found


async def _start(
    body: Body, service: Service, who: Who, user: str, vector: bytes | MicroVector | None
) -> list[AnswerStream]:
    if service.draining:
        raise going_down()
    stack: VectorSource | None = vector
    if vector is not None and service.under is not None and vector is not service.under:
        stack = [service.under, vector]
    whose: Any = {"user": user, "tenant": who.tenant, "account": who.account, "vector": stack}
    return await service.pool.streams(
        body.text, body.n, raw=not body.messages, **whose, **body.options(service.limits)
    )


async def _whole(streams: Sequence[AnswerStream]) -> list[Answer]:
    return await asyncio.gather(*(stream.answer() for stream in streams))


async def _unless_left(request: Request, doing: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns. ClientDisconnect: the client left first, and it is cancelled."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    done, left = asyncio.create_task(doing), asyncio.create_task(leaves())
    both: tuple[asyncio.Task[Any], ...] = (done, left)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientDisconnect
        return done.result()
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
    body: Body,
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
            if isinstance(part, Finish):
                await _remember(request, service, index, streams[index])
            for chunk in reply.chunks(index, part):
                yield _event(chunk)
        if body.stream_options.get("include_usage"):
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
            for index, piece in await asyncio.gather(*done):  # gather retrieves the exceptions of all tasks
                if piece is not None:
                    yield index, piece
                    steps.add(asyncio.create_task(step(index)))
                elif (finish := streams[index].finish) is not None:
                    yield index, finish
    finally:
        for task in steps:
            task.cancel()
        await asyncio.gather(*steps, return_exceptions=True)


def _event(content: Any) -> dict[str, str]:
    return {"data": json.dumps(content, ensure_ascii=False, separators=(",", ":"))}


def _end(request: Request, service: Service, streams: Sequence[AnswerStream]) -> None:
    """Close the streams; count and log the tokens that were made."""
    for stream in streams:
        stream.close()
    finishes = [stream.finish for stream in streams if stream.finish is not None]
    tokens, vector, fields = usage(finishes), streams[0].vector, request.state.log
    counts = {kind: tokens[f"{kind}_tokens"] for kind in ("prompt", "completion")}
    counts["cached"] = tokens["prompt_tokens_details"]["cached_tokens"]
    for kind, count in counts.items():
        service.metrics.tokens.labels(kind).inc(count)
        fields[f"{kind}_tokens"] = count
    fields["sequence"] = None if vector is None else vector.sequence
    fields["finish"] = [finish.reason for finish in finishes]


async def _remember(request: Request, service: Service, index: int, stream: AnswerStream) -> None:
    """Store an answer for its click, which may come to any server of the store, before the client has all of
    it."""
    feedback, made, finish, name = service.feedback, stream.request, stream.finish, request.state.log["id"]
    if feedback is None or finish is None or made is None or not is_user(made.user):
        return
    answer = SampledAnswer(made.prompt, finish.tokens, made.vector, made.sampling.temperature)
    whose = Who(request.state.caller.who.account, made.user)
    named = f"{name}:{index}" if index else name
    try:
        await service.with_store(whose, lambda _: feedback.remember(named, whose, answer))
    except errors.TinyLoraError as error:  # the answer is good, but a click on it will get a 404
        LOG.error("answer not remembered", extra={"fields": {"why": str(error)}})


_List = Annotated[list[T], Field(fail_fast=True)]
"""A list that is refused at its first wrong item: to report all of the 500,000 that 1 MB may have would take
seconds."""


class _Part(BaseModel):
    """A part of a message's content; only texts are supported."""

    model_config = _STRICT
    type: Literal["text"]
    text: str = ""


class _Message(BaseModel):
    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | _List[_Part] | None = None
    tool_calls: _List[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as chat templates take it."""
        role = "system" if self.role == "developer" else self.role
        parts, calls = self.content or "", {"tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        content = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": role, "content": content} | {k: v for k, v in calls.items() if v}


class Body(BaseModel):
    """The body of a request for completions: of a chat, or of a text, whose `messages` are empty.

    `model` may have `@user` behind it.
    """

    model_config = _STRICT
    model: str
    messages: _List[_Message] = []
    prompt: Annotated[list[str], Field(min_length=1, max_length=1)] | str = ""
    user: str = ""
    vector: str = ""
    n: int = Field(1, ge=1, le=8)
    stream: bool = False
    stream_options: dict[str, Any] = {}
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | _List[str] = []
    response_format: dict[str, Any] = {"type": "text"}
    logprobs: bool | int | None = None
    top_logprobs: int = Field(0, ge=0, le=LOGPROBS)
    tools: list[Any] = []
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True

    @property
    def text(self) -> Prompt:
        """The messages, or the text to continue."""
        if self.messages:
            return [message.plain() for message in self.messages]
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def options(self, limits: Limits) -> dict[str, Any]:
        """Return the options of `Pool.streams`. RequestError: one is out of its range."""
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        count: int | None = getattr(self, name)
        if not 1 <= (count := limits.tokens if count is None else count) <= limits.tokens:
            raise RequestError(f"{name} is {count}: it must be from 1 to {limits.tokens}", param=name)
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        logprobs = self.logprobs  # whether, for a chat; how many, for a text
        if isinstance(logprobs, bool):
            logprobs = self.top_logprobs if logprobs else None
        same = ("temperature", "top_p", "stop", "tools", "tool_choice", "parallel_tool_calls")
        return {name: getattr(self, name) for name in same} | {
            "max_tokens": count,
            "seed": None if self.seed is None else self.seed % (1 << 64),  # OpenAI's may be negative
            "schema": schema_of(self.response_format),
            "logprobs": logprobs,
        }


def read_body(body: Any, *, chat: bool) -> Body:
    """Return a chat completion's or a completion's body. RequestError: something in it is not valid."""
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    for name, nothing in (_UNSUPPORTED if chat else _UNSUPPORTED | _OF_CHATS).items():
        if body.get(name) not in nothing:
            raise RequestError(f"{name} is not supported here", param=name, code="unsupported_parameter")
    fields = {name: value for name, value in body.items() if value is not None}
    try:
        found = Body.model_validate(fields)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        first = max(wrong, key=lambda each: len(each["loc"]))  # of a value's several forms, the nearest one's
        where = first["loc"][: 3 if first["loc"][0] == "messages" else 1]
        param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)[1:]
        raise RequestError(f"{param}: {first['msg']}", param=param) from None
    if not getattr(found, needed := "messages" if chat else "prompt"):
        raise RequestError(f"{needed} is missing, or empty", param=needed)
    if found.logprobs is not None and isinstance(found.logprobs, bool) != chat:
        raise RequestError(f"logprobs must be {'true or false' if chat else 'an integer'}", param="logprobs")
    return found
