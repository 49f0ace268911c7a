"""The routes beside completions: users' vectors, clicks, and what the server says of itself."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import RequestError, TrainError
from ..wire import text
from .access import RefusedError
from .requests import BYTES, caller, content_type, find_caller, only_field, read_bytes, read_frame, read_json
from .service import Service, wrong_user
from .store import Stored, check_user


async def put_vector(request: Request, service: Service) -> Response:
    """Answer `PUT /v1/vectors/{user}`: the frame as bytes, or as text in JSON. The reply leaves it out."""
    user = _user(request, service)
    if content_type(request) == BYTES:
        frame = await read_bytes(request, service)
    else:
        frame = read_frame(only_field(await read_json(request, service), "vector"))
    policy = service.pool.policy
    stored = await service.with_store(lambda store: store.put(user, frame, policy))
    return JSONResponse(_described(stored))


async def get_vector(request: Request, service: Service) -> Response:
    """Answer `GET /v1/vectors/{user}`: JSON, or the bytes where the client accepts these."""
    user = _user(request, service)
    stored = await service.with_store(lambda store: store.get(user))
    if stored is None:
        raise _nothing(user)
    if request.headers.get("accept", "") == BYTES:
        return Response(stored.frame, media_type=BYTES)
    return JSONResponse(_described(stored) | {"vector": text.encode(stored.frame)})


async def delete_vector(request: Request, service: Service) -> Response:
    """Answer `DELETE /v1/vectors/{user}`: the clicks go too, from which the vector would come again."""
    user = _user(request, service)
    if service.feedback is not None:
        await service.in_turn(service.feedback.forget, user)
    if not await service.with_store(lambda store: store.delete(user)):
        raise _nothing(user)
    return JSONResponse({"object": "vector.deleted", "user": user, "deleted": True})


async def click(request: Request, service: Service) -> Response:
    """Answer `POST /v1/feedback`: `{"id", "reward"}`, or `{"better", "worse"}`."""
    key_user = caller(request).user
    feedback = service.feedback
    if feedback is None:
        message = "this server learns from no clicks: start it with --store and --feedback"
        raise RefusedError(404, message, "no_feedback")
    body = await read_json(request, service)
    try:
        match body:
            case {"id": str(name), "reward": 1 | -1 as reward, **rest} if not rest:
                stored = await service.in_turn(feedback.tell, _reply_id(name), int(reward), key_user)
            case {"better": str(better), "worse": str(worse), **rest} if not rest:
                stored = await service.in_turn(feedback.prefer, _reply_id(better), _reply_id(worse), key_user)
            case _:
                raise RequestError(
                    'the body is neither {"id": text, "reward": 1 or -1} nor {"better": text, "worse": text}'
                )
    except TrainError as error:
        raise RequestError(str(error), code="nothing_learned") from None
    return JSONResponse({"object": "feedback", "user": stored.user, "sequence": stored.sequence})


async def models(request: Request, service: Service) -> Response:
    """Answer `GET /v1/models`: the base, and the user that the key stands for. Others are not listed."""
    key_user = caller(request).user
    names = [service.name] + ([f"{service.name}@{key_user}"] if key_user else [])
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in names]})


async def model(request: Request, service: Service) -> Response:
    """Answer `GET /v1/models/{model}`."""
    key_user = caller(request).user
    wanted: str = request.path_params["model"]
    name, at, user = wanted.partition("@")
    known = name == service.name
    if known and at:
        visible = key_user in (None, user) and service.store is not None and bool(check_user(user))
        known = visible and await service.with_store(lambda store: store.get(user)) is not None
    if not known:
        raise RefusedError(404, f"there is no model {wanted[:80]!r}", "model_not_found", "model")
    return JSONResponse(_model(service, wanted))


async def health(request: Request, service: Service) -> Response:
    """Answer `GET /health`: 200 while requests are taken, 503 from the moment that the server goes down."""
    load = service.pool.load()
    state = "draining" if service.draining else "ok"
    body = {"status": state, "running": load.running, "waiting": load.waiting}
    return JSONResponse(body, 503 if service.draining else 200)


async def metrics(request: Request, service: Service) -> Response:
    """Answer `GET /metrics` for Prometheus: others' tokens are in it, so no user's key opens it."""
    if find_caller(request, service).user is not None:
        message = "the metrics are the operator's: ask with a key that stands for no user"
        raise RefusedError(403, message, "not_the_operator", kind="permission_error")
    counted = service.metrics.text(service.pool.load())
    return Response(counted, media_type=CONTENT_TYPE_LATEST)


def _user(request: Request, service: Service) -> str:
    key_user = caller(request).user
    user = check_user(request.path_params["user"])
    if key_user not in (None, user):
        raise wrong_user(user)
    return user


def _reply_id(name: str) -> str:
    """Return the id of a reply without what says which kind of completion it was."""
    return name.removeprefix("chat").removeprefix("cmpl-")


def _described(stored: Stored) -> dict[str, object]:
    return {
        "object": "vector",
        "user": stored.user,
        "sequence": stored.sequence,
        "bytes": len(stored.frame),
    }


def _nothing(user: str) -> RefusedError:
    return RefusedError(404, f"user {user!r} has no vector here", "vector_not_found", "user")


def _model(service: Service, name: str) -> dict[str, object]:
    bases = service.pool.bases
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "tinylora-edge",
        "factors": bases.id,
        "vectors": bases.known(),
        "n_ctx": service.pool.n_ctx,
    }
