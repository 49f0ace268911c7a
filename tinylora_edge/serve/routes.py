"""The routes beside completions: users' vectors, clicks, what the server says of itself, and the page."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import RequestError, TrainError
from ..wire import text
from .access import RefusedError
from .bodies import read_frame
from .editor import HEADERS, PAGE, VectorEditor, draw_qr, read_files
from .exchange import about, read_bytes, read_json
from .service import Service, wrong_user
from .store import check_user

_BYTES = "application/octet-stream"


async def put_vector(request: Request, service: Service) -> Response:
    """Answer `PUT /v1/vectors/{user}`: the frame as bytes, or as text in JSON. The reply leaves it out."""
    user = _user(request, service)
    if _sends_bytes(request):
        frame = await read_bytes(request, service)
    else:
        frame = read_frame(_part(await read_json(request, service), "vector"))
    policy = service.pool.policy
    stored = await service.with_store(lambda store: store.put(user, frame, policy))
    return JSONResponse(_described(stored))


async def get_vector(request: Request, service: Service) -> Response:
    """Answer `GET /v1/vectors/{user}`: JSON, or the bytes where these are asked for."""
    user = _user(request, service)
    stored = await service.with_store(lambda store: store.get(user))
    if stored is None:
        raise _nothing(user)
    if request.headers.get("accept", "") == _BYTES:
        return Response(stored.frame, media_type=_BYTES)
    return JSONResponse(_described(stored) | {"vector": text.encode(stored.frame)})


async def delete_vector(request: Request, service: Service) -> Response:
    """Answer `DELETE /v1/vectors/{user}`: his clicks go too, from which the vector would come again."""
    user = _user(request, service)
    if service.feedback is not None:
        await service.in_turn(service.feedback.forget, user)
    if not await service.with_store(lambda store: store.delete(user)):
        raise _nothing(user)
    return JSONResponse({"object": "vector.deleted", "user": user, "deleted": True})


async def tell(request: Request, service: Service) -> Response:
    """Answer `POST /v1/feedback`: `{"id", "reward"}`, or `{"better", "worse"}`."""
    key_user = service.authorize(request.headers)
    feedback = service.feedback
    if feedback is None:
        message = "this server learns from no clicks: start it with --store and --feedback"
        raise RefusedError(404, message, "no_feedback")
    body = await read_json(request, service)
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object")
    try:
        if body.keys() == {"id", "reward"}:
            reward = body["reward"]
            if type(reward) is not int or reward not in (1, -1):
                raise RequestError("reward is neither 1 nor -1", param="reward")
            name = _answer(body, "id")
            stored = await service.in_turn(feedback.tell, name, reward, key_user)
        elif body.keys() == {"better", "worse"}:
            names = _answer(body, "better"), _answer(body, "worse")
            stored = await service.in_turn(feedback.prefer, *names, key_user)
        else:
            raise RequestError('the body has neither "id" and "reward" alone, nor "better" and "worse"')
    except TrainError as error:
        raise RequestError(str(error), code="nothing_learned") from None
    about(request)["user"] = stored.user
    return JSONResponse({"object": "feedback", "user": stored.user, "sequence": stored.sequence})


async def models(request: Request, service: Service) -> Response:
    """Answer `GET /v1/models`: the base, and the user whom the key stands for. Others are not listed."""
    key_user = service.authorize(request.headers)
    names = [service.name] + ([f"{service.name}@{key_user}"] if key_user else [])
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in names]})


async def model(request: Request, service: Service) -> Response:
    """Answer `GET /v1/models/{model}`."""
    key_user = service.authorize(request.headers)
    asked: str = request.path_params["model"]
    name, at, user = asked.partition("@")
    known = name == service.name
    if known and at:
        visible = key_user in (None, user) and service.store is not None and bool(check_user(user))
        known = visible and await service.with_store(lambda store: store.get(user)) is not None
    if not known:
        raise RefusedError(404, f"there is no model {asked[:80]!r}", "model_not_found", "model")
    return JSONResponse(_model(service, asked))


async def health(request: Request, service: Service) -> Response:
    """Answer `GET /health`: 200 while requests are taken, 503 from the moment that the server goes down."""
    load = service.pool.load()
    state = "draining" if service.draining else "ok"
    body = {"status": state, "running": load.running, "waiting": load.waiting}
    return JSONResponse(body, 503 if service.draining else 200)


async def metrics(request: Request, service: Service) -> Response:
    """Answer `GET /metrics` for Prometheus, with a key where the server asks for one."""
    service.authorize(request.headers)
    counted = service.metrics.text(service.pool.load())
    return Response(counted, media_type=CONTENT_TYPE_LATEST)


async def page_file(request: Request, service: Service) -> Response:
    """Answer `GET /` and `GET /page/{file}`: no secrets. The token is in the address, behind the #."""
    service.check_origin(request.headers)
    name = request.path_params.get("file", PAGE)
    found = read_files().get(name)
    if found is None:
        raise RefusedError(404, f"the page has no file {name[:80]!r}", "not_found")
    content, kind = found
    return Response(content, media_type=kind, headers=dict(HEADERS))


async def page_about(request: Request, service: Service) -> Response:
    """Answer `GET /v1/page`: what the page shows, the visitor's vector, and what clicks made of it."""
    editor, basis = _editor(request, service), service.pool.basis
    present, learned = await asyncio.to_thread(lambda: (editor.present(), editor.learned()))
    return JSONResponse(
        {
            "object": "page",
            "model": service.name,
            "user": editor.user,
            "basis": basis.id,
            "axes": [f"v{number}" for number in range(1, basis.size + 1)],
            "reach": editor.reach(),
            "feedback": service.feedback is not None,
            "max_tokens": service.limits.tokens,
            "vector": present.record(),
            "learned": learned.record(),
        }
    )


async def page_vector(request: Request, service: Service) -> Response:
    """Answer `POST /v1/page/vector`: the frame of `{"values": [...]}`, or the values of a file's bytes."""
    editor = _editor(request, service)
    if _sends_bytes(request):
        made = await asyncio.to_thread(editor.opened, await read_bytes(request, service))
    else:
        values = _part(await read_json(request, service), "values")
        if not isinstance(values, list):
            raise RequestError("values is no list", param="values")
        made = await asyncio.to_thread(editor.made, values)
    return JSONResponse(made.record())


async def page_qr(request: Request, service: Service) -> Response:
    """Answer `POST /v1/page/qr`: the picture of `{"vector": "<base64url>"}`."""
    _editor(request, service)
    frame = read_frame(_part(await read_json(request, service), "vector"))
    return Response(await asyncio.to_thread(draw_qr, frame), media_type="image/svg+xml", headers=HEADERS)


def _user(request: Request, service: Service) -> str:
    """Return the user in a path, whom the request's key stands for."""
    key_user = service.authorize(request.headers)
    user = check_user(request.path_params["user"])
    about(request)["user"] = user
    if key_user not in (None, user):
        raise wrong_user(user)
    return user


def _editor(request: Request, service: Service) -> VectorEditor:
    """Return the editor of the page, for whoever has its token."""
    user = service.authorize(request.headers)
    if service.editor is None or user != service.editor.user:
        message = "the page is for its visitor alone: open the address that the server printed"
        raise RefusedError(403, message, "wrong_user", kind="permission_error")
    return service.editor


def _sends_bytes(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == _BYTES


def _part(body: object, name: str) -> object:
    if not isinstance(body, Mapping) or body.keys() != {name}:
        raise RequestError(f'the body is no object with "{name}" alone', param=name)
    return body[name]


def _answer(body: Mapping[str, object], part: str) -> str:
    name = body[part]
    if not isinstance(name, str):
        raise RequestError(f"{part} is no text", param=part)
    return name.removeprefix("chat").removeprefix("cmpl-")


def _described(stored: Any) -> dict[str, object]:
    return {
        "object": "vector",
        "user": stored.user,
        "sequence": stored.sequence,
        "bytes": len(stored.frame),
        "created": int(stored.made),
        "changed": int(stored.changed),
    }


def _nothing(user: str) -> RefusedError:
    return RefusedError(404, f"user {user!r} has no vector here", "vector_not_found", "user")


def _model(service: Service, name: str) -> dict[str, object]:
    basis = service.pool.basis
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "tinylora-edge",
        "basis": basis.id,
        "values": basis.size,
        "n_ctx": service.pool.n_ctx,
    }
