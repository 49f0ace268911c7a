"""The routes that tell about the server: its models, its health and its metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..failures import RefusedError
from ..service import Service
from ..store import check_user


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
    text = service.metrics.text(service.pool.load())
    return Response(text, media_type=CONTENT_TYPE_LATEST)


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
