"""Requests over HTTP: who sends one, its body within limits, its failure as JSON, its line in the log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import (
    BasisMismatchError,
    ChecksumError,
    FrameError,
    OptionError,
    OverloadError,
    RequestError,
    RollbackError,
    SignatureError,
    StoreError,
    TinyLoraError,
    VectorError,
)
from ..jsonio import parse_json
from ..runtime.turns import Who
from ..wire import text
from .access import RefusedError
from .service import Service

LOG = logging.getLogger("tinylora_edge.serve")
BYTES = "application/octet-stream"
UPLOAD_S = 30.0
"""Seconds that a request's body may take to arrive."""

OPEN = "are open"
"""What the requests that have places do."""

# Error, status, code and type of OpenAI's error object; the first that fits. Without a code: the error's own.
_FAILURES: tuple[tuple[type[BaseException], int, str, str], ...] = (
    (RequestError, 400, "", "invalid_request_error"),
    (OptionError, 400, "invalid_value", "invalid_request_error"),
    (SignatureError, 403, "vector_forged", "permission_error"),
    (RollbackError, 403, "vector_stale", "permission_error"),
    (BasisMismatchError, 403, "vector_of_another_basis", "permission_error"),
    (ChecksumError, 403, "vector_damaged", "permission_error"),
    (VectorError, 403, "vector_refused", "permission_error"),
    (OverloadError, 429, "overloaded", "rate_limit_error"),
    (StoreError, 503, "store_unavailable", "server_error"),
    (TinyLoraError, 503, "unavailable", "server_error"),
    (BaseException, 500, "internal_error", "server_error"),
)
_FIELDS, _CALLER = "tinylora.log", "tinylora.caller"  # in a scope
_HEADERS = {429: {"Retry-After": "1"}, 401: {"Connection": "close"}}  # whoever has no key gets one answer
_TENANT_DIGITS = 12  # of its hash, in the log
_LEFT = 499  # as nginx has it: the client left before the answer


@dataclass
class Caller:
    """Who sends a request.

    Attributes:
        key: SHA-256 of the API key; empty where the server needs none.
        user: the one user that the key stands for; None for any.
        who: whose places and turns the request takes: the key's, and once its body is read those of the user
            that it names, inside the key's.
    """

    key: bytes = b""
    user: str | None = None
    who: Who = field(init=False)

    def __post_init__(self) -> None:
        self.who = Who(self.key.hex(), self.key.hex())

    def who_of(self, *users: str) -> Who:
        """Return key and users, hashed as one tenant; without a key each is by itself. A user's key has no
        others."""
        if not self.key and not any(users):
            return self.who
        named = users if self.user is None else (self.user,)
        tenant = hashlib.sha256(self.key + json.dumps(named).encode()).hexdigest()
        return Who(self.key.hex() or tenant, tenant)


def find_caller(request: Request, service: Service) -> Caller:
    """Return who sends a request. RefusedError: no such key, or the request is to another host."""
    if service.api_keys is not None:
        return Caller(*service.api_keys.find(request.headers.get("authorization", "")))
    host = None
    with suppress(ValueError):  # brackets that do not match
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    if service.hosts and host not in service.hosts:
        message = f"this server is not {str(host)[:80]!r}: ask it as {', '.join(sorted(service.hosts))}"
        raise RefusedError(403, message, "wrong_host", kind="permission_error")
    return Caller()


def caller(request: Request) -> Caller:
    """Return who sends a request, on a route below /v1/."""
    found: Caller = request.scope[_CALLER]
    return found


def log_fields(request: Request) -> dict[str, Any]:
    """Return the fields of a request's line in the log, to be added to: no prompt, answer or user's name."""
    found: dict[str, Any] = request.scope[_FIELDS]
    return found


def refusal(request: Request, service: Service, error: BaseException) -> JSONResponse:
    """Return the response to a request that fails, in OpenAI's shape; note why in log and metrics."""
    if isinstance(error, RefusedError):
        status, code, kind, message = error.status, error.code, error.kind, error.message
    else:
        status, code, kind = next(each[1:] for each in _FAILURES if isinstance(error, each[0]))
        code, message = code or str(getattr(error, "code", "")), str(error)
    if status == 500:
        LOG.error("internal error", exc_info=error)
        message = "the server failed; its log says how"
    param = getattr(error, "param", "")
    if isinstance(error, VectorError):
        param = "vector"
        service.metrics.refused.labels(code).inc()
    log_fields(request)["error"] = code
    content = {"error": {"message": message, "type": kind, "param": param or None, "code": code}}
    return JSONResponse(content, status, _HEADERS.get(status))


async def unknown_route(request: Request, error: Exception) -> Response:
    """Refuse what has no route, or another method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:80]} is nothing that this server has"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    raise RefusedError(error.status_code, message, code)


def content_type(request: Request) -> str:
    """Return the media type of a request's body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, service: Service) -> Any:
    """Return the JSON of a body. Errors: those of `read_bytes`, and RequestError where it is none."""
    kind = content_type(request)
    if kind != "application/json":  # a web page of somebody else's cannot send this unasked
        message = f"the body's type is {kind[:80]!r}: send Content-Type: application/json"
        raise RefusedError(415, message, "unsupported_media_type")
    data = await read_bytes(request, service)
    try:
        return parse_json(data, limit=service.limits.body)
    except ValueError as error:
        message = f"the body is no JSON that this server reads: {error}"
        raise RequestError(message, code="invalid_json") from None


async def read_bytes(request: Request, service: Service) -> bytes:
    """Return a body. RefusedError: it is too large, or too slow."""
    most, data = service.limits.body, bytearray()
    too_large = RefusedError(413, f"the body has more than {most:,} bytes", "body_too_large")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > most:
        raise too_large
    try:
        async with asyncio.timeout(UPLOAD_S):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {UPLOAD_S:g} s", "body_too_slow") from None
    return bytes(data)


def only_field(body: object, name: str) -> object:
    """Return the value of a body that has one field. RequestError: it has another, or more."""
    if not isinstance(body, dict) or body.keys() != {name}:
        raise RequestError(f'the body is no object with "{name}" alone', param=name)
    found: object = body[name]
    return found


def read_frame(vector: object) -> bytes:
    """Return the frame in a text of a body or a header. RequestError: it is none."""
    if not isinstance(vector, str):
        raise RequestError("vector is no text: send a frame as base64url", param="vector")
    try:
        return text.decode(vector)
    except FrameError as error:
        raise RequestError(str(error), param="vector") from None


class RequestMiddleware:
    """What is around all routes: who may ask, how much at once, errors as JSON, a line of log, metrics."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), _LEFT

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        fields = scope[_FIELDS] = dict[str, Any]()
        service, request, placed = self._service, Request(scope), None
        try:
            if scope["path"].removeprefix(scope.get("root_path", "")).startswith("/v1/"):
                found = scope[_CALLER] = find_caller(request, service)
                fields["tenant"] = found.who.tenant[:_TENANT_DIGITS]
                service.places.check(found.who, OPEN)
                service.places.take(found.who)
                placed = found
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            pass
        except Exception as error:
            if status != _LEFT:  # the response has begun
                raise
            await refusal(request, service, error)(scope, receive, sending)
        finally:
            if placed is not None:
                service.places.leave(placed.who)
                fields["tenant"] = placed.who.tenant[:_TENANT_DIGITS]  # its user's, once the body named one
            seconds, route = time.perf_counter() - start, getattr(scope.get("route"), "path", "none")
            service.metrics.requests.labels(route, str(status)).inc()
            service.metrics.seconds.labels(route).observe(seconds)
            line = {"method": scope["method"], "route": route, "status": status}
            LOG.info("request", extra={"fields": line | {"ms": round(seconds * 1e3, 1)} | fields})
