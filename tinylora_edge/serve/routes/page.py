"""The routes of the page: its files, and what it asks beside OpenAI's routes, for its visitor alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import FrameError, RequestError
from ...wire import text
from ..failures import RefusedError
from ..page.editor import VectorEditor
from ..page.files import HEADERS, PAGE, read_files
from ..page.picture import draw_qr
from ..service import Service
from .exchange import read_bytes, read_json

_BYTES = "application/octet-stream"


async def index(request: Request, service: Service) -> Response:
    """Answer `GET /`: the page, which has no secrets. Its token is in the address, behind the #."""
    return _file(request, service, PAGE)


async def file(request: Request, service: Service) -> Response:
    """Answer `GET /page/{file}`: what the page loads."""
    return _file(request, service, request.path_params["file"])


async def about(request: Request, service: Service) -> Response:
    """Answer `GET /v1/page`: what the page shows, the visitor's vector, and what clicks made of it."""
    editor, user = _allowed(request, service)
    basis = service.pool.basis
    present, learned = await asyncio.to_thread(lambda: (editor.present(), editor.learned()))
    return JSONResponse(
        {
            "object": "page",
            "model": service.name,
            "user": user,
            "basis": basis.id,
            "axes": list(basis.axes) or [f"v{number}" for number in range(1, basis.size + 1)],
            "reach": editor.reach(),
            "feedback": service.feedback is not None,
            "max_tokens": service.limits.tokens,
            "vector": present.record(),
            "learned": learned.record(),
        }
    )


async def vector(request: Request, service: Service) -> Response:
    """Answer `POST /v1/page/vector`: the frame of `{"values": [...]}`, or the values of a file's bytes."""
    editor, _ = _allowed(request, service)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == _BYTES:
        data = await read_bytes(request, service)
        made = await asyncio.to_thread(editor.opened, data)
    else:
        values = _part(await read_json(request, service), "values")
        if not isinstance(values, list):
            raise RequestError("values is no list", param="values")
        made = await asyncio.to_thread(editor.made, values)
    return JSONResponse(made.record())


async def qr(request: Request, service: Service) -> Response:
    """Answer `POST /v1/page/qr`: the picture of `{"vector": "<base64url>"}`."""
    _allowed(request, service)
    frame = await _frame(request, service)
    return Response(await asyncio.to_thread(draw_qr, frame), media_type="image/svg+xml", headers=HEADERS)


async def drift(request: Request, service: Service) -> Response:
    """Answer `POST /v1/page/drift`: how far `{"vector": "<base64url>"}` moves the model from its base."""
    editor, _ = _allowed(request, service)
    frame = await _frame(request, service)
    found = await service.in_turn(editor.drift, frame)
    return JSONResponse({"object": "page.drift", **found.record()})


def _allowed(request: Request, service: Service) -> tuple[VectorEditor, str]:
    """Return the editor and the user of the page, for whoever has its token.

    Raises:
        RefusedError: somebody else asks.
    """
    user = service.authorize(request.headers)
    if service.editor is None or user != service.editor.user:
        message = "the page is for its visitor alone: open the address that the server printed"
        raise RefusedError(403, message, "wrong_user", kind="permission_error")
    return service.editor, user


def _file(request: Request, service: Service, name: str) -> Response:
    service.check_origin(request.headers)
    found = read_files().get(name)
    if found is None:
        raise RefusedError(404, f"the page has no file {name[:80]!r}", "not_found")
    content, kind = found
    return Response(content, media_type=kind, headers=dict(HEADERS))


async def _frame(request: Request, service: Service) -> bytes:
    given = _part(await read_json(request, service), "vector")
    if not isinstance(given, str):
        raise RequestError("vector is no text", param="vector")
    try:
        return text.decode(given)
    except FrameError as error:
        raise RequestError(str(error), param="vector") from None


def _part(body: object, name: str) -> object:
    if not isinstance(body, Mapping) or body.keys() != {name}:
        raise RequestError(f'the body is no object with "{name}" alone', param=name)
    return body[name]
