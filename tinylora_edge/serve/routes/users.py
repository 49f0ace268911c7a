"""The routes of users' vectors: put, get and delete, each checked as a request's vector is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import FrameError, RequestError
from ...wire import text
from ..failures import RefusedError
from ..service import Service, wrong_user
from ..store import Stored, check_user
from .exchange import about, read_bytes, read_json

_BYTES = "application/octet-stream"


async def put(request: Request, service: Service) -> Response:
    """Answer `PUT /v1/vectors/{user}`: the frame as bytes, or as text in JSON."""
    user = _user(request, service)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == _BYTES:
        frame = await read_bytes(request, service)
    else:
        body = await read_json(request, service)
        vector = body.get("vector") if isinstance(body, dict) else None
        if not isinstance(vector, str):
            raise RequestError('the body is no {"vector": "<base64url>"}', param="vector")
        try:
            frame = text.decode(vector)
        except FrameError as error:
            raise RequestError(str(error), param="vector") from None
    policy = service.pool.policy
    stored = await service.with_store(lambda store: store.put(user, frame, policy))
    return JSONResponse(_described(stored))


async def get(request: Request, service: Service) -> Response:
    """Answer `GET /v1/vectors/{user}`: JSON, or the bytes where these are asked for."""
    user = _user(request, service)
    stored = await service.with_store(lambda store: store.get(user))
    if stored is None:
        raise _nothing(user)
    if request.headers.get("accept", "") == _BYTES:
        return Response(stored.frame, media_type=_BYTES)
    return JSONResponse(_described(stored))


async def delete(request: Request, service: Service) -> Response:
    """Answer `DELETE /v1/vectors/{user}`: his clicks go too, from which the vector would come again."""
    user = _user(request, service)
    if service.feedback is not None:
        await service.in_turn(service.feedback.forget, user)
    if not await service.with_store(lambda store: store.delete(user)):
        raise _nothing(user)
    return JSONResponse({"object": "vector.deleted", "user": user, "deleted": True})


def _user(request: Request, service: Service) -> str:
    key_user = service.authorize(request.headers)
    user = check_user(request.path_params["user"])
    about(request)["user"] = user
    if key_user not in (None, user):
        raise wrong_user(user)
    return user


def _described(stored: Stored) -> dict[str, object]:
    return {
        "object": "vector",
        "user": stored.user,
        "sequence": stored.sequence,
        "vector": text.encode(stored.frame),
        "created": int(stored.made),
        "changed": int(stored.changed),
    }


def _nothing(user: str) -> RefusedError:
    return RefusedError(404, f"user {user!r} has no vector here", "vector_not_found", "user")
