"""One exchange over HTTP: its body within limits, its failure as JSON, and its line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import OverloadError, RequestError, VectorError
from ..jsonio import parse_json
from .access import Caller, RefusedError, failure_of
from .service import OPEN, Service

LOG = logging.getLogger("tinylora_edge.serve")
BYTES = "application/octet-stream"
UPLOAD_S = 30.0
"""Seconds that a request's body may take to arrive."""

Handler = Callable[[Request, Service], Awaitable[Response]]

T = TypeVar("T")

_ABOUT, _CALLER = "tinylora.about", "tinylora.caller"  # in a scope: for the log, and who asks
_HEADERS = {429: {"Retry-After": "1"}, 401: {"Connection": "close"}}  # whoever has no key gets one answer
_SHOWN = 12  # characters of a tenant in the log
_LEFT = 499  # as nginx has it: the client left before the answer


def about(request: Request) -> dict[str, Any]:
    """Return what the log will say of a request, to be added to: never a prompt, an answer, a user's name."""
    found: dict[str, Any] = request.scope.setdefault(_ABOUT, {})
    return found


def caller(request: Request) -> Caller:
    """Return who asks, on a route that is for callers alone: /v1/."""
    found: Caller = request.scope[_CALLER]
    return found


def told(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler as an endpoint: whatever it raises becomes a response in OpenAI's shape."""

    async def endpoint(request: Request) -> Response:
        service: Service = request.app.state.service
        try:
            return await handler(request, service)
        except ClientDisconnect:
            return Response(status_code=_LEFT)
        except Exception as error:
            return refusal(request, error)

    return endpoint


def refusal(request: Request, error: BaseException) -> JSONResponse:
    """Return what the client of a request that fails is told; note why in log and metrics."""
    status, said = failure_of(error)
    about(request)["error"] = said["code"]
    if status == 500:
        LOG.error("internal error", exc_info=error)
    if isinstance(error, VectorError):
        request.app.state.service.metrics.refused.labels(said["code"]).inc()
    return JSONResponse({"error": said}, status, _HEADERS.get(status))


async def unknown_route(request: Request, error: Exception) -> Response:
    """Answer what has no route, or another method, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:80]} is nothing that this server has"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    return refusal(request, RefusedError(error.status_code, message, code))


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


async def unless_it_leaves(request: Request, service: Service, work: asyncio.Future[T]) -> T:
    """Return the outcome of some work; ClientDisconnect or TimeoutError where the client or time is gone."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    left = asyncio.create_task(leaves())
    both: tuple[asyncio.Future[Any], ...] = (work, left)
    try:
        await asyncio.wait(both, timeout=service.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientDisconnect if left.done() else TimeoutError
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)


class Exchanges:
    """What is around all routes: who may ask, how much at once, and a line of log and metrics for each."""

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

        said = scope[_ABOUT] = dict[str, Any]()
        request, app, placed = Request(scope), self._app, None
        if scope["path"].removeprefix(scope.get("root_path", "")).startswith("/v1/"):
            try:
                found = scope[_CALLER] = self._service.access.caller(request.headers)
                said["tenant"] = found.who.tenant[:_SHOWN]
                self._service.places.check(found.who, OPEN)
                self._service.places.take(found.who)
                placed = found
            except (RefusedError, OverloadError) as error:
                app = refusal(request, error)
        try:
            await app(scope, receive, sending)
        finally:
            if placed is not None:
                self._service.places.leave(placed.who)
                said["tenant"] = placed.who.tenant[:_SHOWN]  # its user's, once the body named one
            seconds, route = time.perf_counter() - start, getattr(scope.get("route"), "path", "none")
            self._service.metrics.requests.labels(route, str(status)).inc()
            self._service.metrics.seconds.labels(route).observe(seconds)
            line = {
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 1),
            }
            LOG.info("request", extra={"about": line | said})
