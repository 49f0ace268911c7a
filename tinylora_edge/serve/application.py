"""The app, for any ASGI server: its routes, and the handlers of all routes but completions and the page."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from os import PathLike
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import OptionError, RequestError, TinyLoraError, TrainError
from ..formats.bundle import load_bundle
from ..formats.signatures import signed
from ..runtime.load import engine_of
from ..runtime.model import VectorSource, admit
from ..runtime.pool import Pool
from ..runtime.turns import Who
from ..vector import Policy
from ..wire import text
from ..wire.tags import Ed25519Verifier, Signer, Verifier
from . import completions, editor
from .access import ApiKeys, Limits, RefusedError
from .completions import BYTES, content_type, find_caller, only_field, read_bytes, read_frame, read_json
from .feedback import Feedback
from .service import Service, wrong_user
from .store import Listed, Store, Stored, check_user

_PAGE = 1000  # vectors that one list has, at most


def app(
    bundle: str | PathLike[str],
    *,
    store: str | PathLike[str] | None = None,
    name: str | None = None,
    keys: Sequence[Verifier] = (),
    bundle_keys: Sequence[Ed25519Verifier] = (),
    engine: str | None = None,
    api_keys: ApiKeys | None = None,
    limits: Limits | None = None,
    feedback: bool = False,
    signer: Signer | None = None,
    page: bool = False,
    vector: bytes | None = None,
    under: VectorSource | None = None,
    **pool_options: Any,
) -> Starlette:
    """Return a server of a bundle as an ASGI app, its model loaded.

    Args:
        store: an SQLite file with users' vectors, made where it does not exist, or `postgresql://...` (see
            `Store`). Without one, clients send theirs with each request.
        name: of the model, as clients ask for it; by default that of the bundle's folder.
        keys: of the policy that checks every vector, at every request (see `Policy`).
        bundle_keys, engine: as for `runtime.load`.
        api_keys: None: no key is needed.
        feedback: whether the server learns from clicks, `POST /v1/feedback`; it needs a store.
        signer: of the vectors that it learns; None for a checksum.
        page: whether the app has a page, at `/`, whose token is the only API key; it needs a store.
        vector: a frame that the page begins with; None for what clicks made, or the base.
        under: a shared vector, or several, beneath every user's, but not beneath the base.
        pool_options: those of `runtime.Pool`.

    Raises:
        OptionError: the name has an @, or an option lacks another one, or contradicts it.
        Those of `runtime.Pool`, `Policy` and the stores.
    """
    name = name or os.path.basename(os.path.abspath(bundle)).removesuffix(".gguf")  # a link's own name
    if "@" in name or not name.isprintable():
        raise OptionError(
            f"the model's name {name!r} has an @, which stands before a user, or a control character: pass "
            "another (--name)"
        )
    if store is None and (feedback or page):
        raise OptionError("the page and learning from clicks need a store: name one (--store)")
    if not feedback and signer is not None:
        raise OptionError("the signer signs only vectors learned from clicks: turn these on (--feedback)")
    if page and (api_keys is not None or keys):
        raise OptionError("the page is for one visitor, whose vectors are not signed: leave out the keys")
    found, limits = load_bundle(bundle), limits or Limits()
    engine = engine_of(found, engine)
    opened = edited = clicks = None
    with ExitStack() as unless_made:
        with signed(found, bundle_keys, engine=engine):
            bases = found.bases
            if store is not None:
                opened = Store(store, bases)
                unless_made.callback(opened.close)
            policy = Policy(keys=keys, state=opened.sequences if opened else None)
            shared = None if under is None else admit(under, bases, policy, beneath=True)
            if page and opened is not None:
                edited = editor.VectorEditor(bases, policy, opened, vector)
                api_keys = ApiKeys({edited.token: editor.USER})
            pool = Pool(found, engine=engine, policy=policy, waiting=limits.requests, **pool_options)
            unless_made.callback(pool.close)
        if feedback and opened is not None:
            clicks = Feedback(pool, opened, signer, shared)
        unless_made.pop_all()
    service = Service(pool, name, opened, api_keys, limits, clicks, shared)

    @asynccontextmanager
    async def lifespan(made: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    served = _ROUTES if edited is None else _ROUTES + _PAGE_ROUTES
    made = Starlette(
        routes=[
            Route(path, partial(handler, service=service), methods=[method])
            for path, method, handler in served
        ],
        middleware=[Middleware(completions.RequestMiddleware, service=service)],
        exception_handlers={HTTPException: completions.unknown_route},
        lifespan=lifespan,
    )
    made.state.service, made.state.editor = service, edited
    return made


async def put_vector(request: Request, service: Service) -> Response:
    """Answer `PUT /v1/vectors/{user}`: the body is the frame, or JSON with its text."""
    user, who = _user(request, service)
    if content_type(request) == BYTES:
        frame = await read_bytes(request, service)
    else:
        frame = read_frame(only_field(await read_json(request, service), "vector"))
    policy = service.pool.policy
    stored = await service.with_store(who, lambda store: store.put(user, frame, policy))
    return JSONResponse(_described(stored))


async def put_vectors(request: Request, service: Service) -> Response:
    """Answer `PUT /v1/vectors`: the body has the frames of several users as text. The reply says for each
    whether it is stored, or why not."""
    found = only_field(await read_json(request, service), "vectors")
    caller, policy = request.state.caller, service.pool.policy
    if not isinstance(found, dict):
        raise RequestError("vectors must be an object: a user's name, and a frame as text", param="vectors")
    if caller.user is not None and (others := [*found.keys() - {caller.user}]):
        raise wrong_user(others[0])

    def put(store: Store) -> dict[str, Stored | TinyLoraError]:
        frames, results = dict[str, bytes](), dict[str, Stored | TinyLoraError](dict.fromkeys(found))
        for user, vector in found.items():
            try:
                frames[user] = read_frame(vector)
            except RequestError as error:
                results[user] = error
        return results | dict(store.put_many(frames.items(), policy))

    done = await service.with_store(caller.who, put)

    def described(user: str, found: Stored | TinyLoraError) -> dict[str, object]:
        if isinstance(found, Stored):
            return _described(found)
        return {"object": "vector", "user": user, "error": completions.failure(service, found)[1]}

    body = {"object": "list", "data": [described(*each) for each in done.items()]}
    return Response(json.dumps(body), media_type="application/json")  # a name may be no valid Unicode


async def list_vectors(request: Request, service: Service) -> Response:
    """Answer `GET /v1/vectors`: up to `?limit=N` vectors by user's name, from the first name behind
    `?after=USER`; a user's key gets that user's alone."""
    own, asked = request.state.caller.user, request.query_params
    after, told = asked.get("after", ""), asked.get("limit", str(_PAGE))
    limit = int(told) if told.isdecimal() and len(told) <= len(str(_PAGE)) else 0
    if not 1 <= limit <= _PAGE:
        raise RequestError(f"limit is {told[:80]!r}: it must be from 1 to {_PAGE}", param="limit")

    def listed(store: Store) -> tuple[list[Listed], bool]:
        if own is None:
            found = store.listed(after, limit + 1)
            return found[:limit], len(found) > limit
        stored = store.get(own)
        return [] if stored is None else [Listed(own, stored.sequence, len(stored.frame))], False

    found, more = await service.with_store(request.state.caller.who, listed)
    data = [{"object": "vector", **each._asdict()} for each in found]
    return JSONResponse({"object": "list", "data": data, "has_more": more})


async def get_vector(request: Request, service: Service) -> Response:
    """Answer `GET /v1/vectors/{user}`: JSON, or the frame where the client accepts its media type."""
    user, who = _user(request, service)
    stored = await service.with_store(who, lambda store: store.get(user))
    if stored is None:
        raise _nothing(user)
    accepted = request.headers.get("accept", "").split(",")
    if BYTES in (each.partition(";")[0].strip().lower() for each in accepted):
        return Response(stored.frame, media_type=BYTES)
    return JSONResponse(_described(stored) | {"vector": text.encode(stored.frame)})


async def delete_vector(request: Request, service: Service) -> Response:
    """Answer `DELETE /v1/vectors/{user}`. Clicks are deleted too, as they would bring the vector back."""
    user, who = _user(request, service)
    if not await service.with_store(who, lambda store: store.delete(user)):
        raise _nothing(user)
    return JSONResponse({"object": "vector.deleted", "user": user, "deleted": True})


async def rate(request: Request, service: Service) -> Response:
    """Answer `POST /v1/feedback`: `{"id", "reward"}` or `{"better", "worse"}`, of answers that this API key
    asked for."""
    caller = request.state.caller
    if (feedback := service.feedback) is None:
        message = "this server does not learn from clicks: start it with --store and --feedback"
        raise RefusedError(404, message, "no_feedback")
    reward = 0
    match await read_json(request, service):
        case {"id": str(name), "reward": 1 | -1 as told, **rest} if not rest:
            names, reward = [name], int(told)
        case {"better": str(better), "worse": str(worse), **rest} if not rest:
            names = [better, worse]
        case _:
            raise RequestError(
                'the body is {"id": text, "reward": 1 or -1}, or {"better": text, "worse": text}'
            )
    rating = [_reply_id(name) for name in names], caller.who.account
    who = caller.who_of(await service.with_store(caller.who, lambda _: feedback.user_of(*rating)))
    try:
        stored = await service.learn(who, feedback.learn, *rating, reward)
    except TrainError as error:
        raise RequestError(str(error), code="nothing_learned") from None
    return JSONResponse({"object": "feedback", "user": stored.user, "sequence": stored.sequence})


async def list_models(request: Request, service: Service) -> Response:
    """Answer `GET /v1/models`: the base, and the model of the user that the key stands for."""
    return JSONResponse({"object": "list", "data": [*(await _models(request, service)).values()]})


async def describe_model(request: Request, service: Service) -> Response:
    """Answer `GET /v1/models/{model}`, for the models that `list_models` lists."""
    wanted = request.path_params["model"]
    if (found := (await _models(request, service)).get(wanted)) is None:
        raise RefusedError(404, f"there is no model {wanted[:80]!r}", "model_not_found", "model")
    return JSONResponse(found)


async def read_health(request: Request, service: Service) -> Response:
    """Answer `GET /health`: status 200, or 503 once the server is about to go down; `exact` as in `Pool`."""
    busy, leaves = service.pool.busy(), service.leaving or service.draining
    state = "draining" if leaves else "ok"
    body = {"status": state, "running": busy.running, "waiting": busy.waiting, "exact": service.pool.exact}
    return JSONResponse(body, 503 if leaves else 200, completions.HEADERS[503] if leaves else None)


async def read_metrics(request: Request, service: Service) -> Response:
    """Answer `GET /metrics` for Prometheus. They count all users' tokens, so a user's key is refused."""
    if find_caller(request, service).user is not None:
        message = "the metrics are the operator's: ask with a key that stands for no user"
        raise RefusedError(403, message, "not_the_operator")
    counted = service.metrics.text(service.pool.busy())
    return Response(counted, media_type=CONTENT_TYPE_LATEST)


def _user(request: Request, service: Service) -> tuple[str, Who]:
    """Return the user of a path, and whose turns the request takes."""
    user, caller = check_user(request.path_params["user"]), request.state.caller
    if caller.user not in (None, user):
        raise wrong_user(user)
    return user, caller.who_of(user)


def _reply_id(name: str) -> str:
    """Return the id of a reply without the prefix of its kind of completion."""
    return name.removeprefix("chat").removeprefix("cmpl-")


def _described(stored: Stored) -> dict[str, object]:
    about = {"object": "vector", "user": stored.user, "sequence": stored.sequence}
    return about | {"bytes": len(stored.frame)}


def _nothing(user: str) -> RefusedError:
    return RefusedError(404, f"user {user!r} has no vector here", "vector_not_found", "user")


async def _models(request: Request, service: Service) -> dict[str, dict[str, object]]:
    """Return the models of a request's key by name; its user's is among them if a vector would answer."""
    user, bases, who = request.state.caller.user, service.pool.bases, request.state.caller.who
    about = {"object": "model", "created": 0, "owned_by": "tinylora-edge"}
    about |= {"factors": bases.id, "vectors": bases.known(), "n_ctx": service.pool.n_ctx}
    names, answers = [service.name], service.under is not None
    if user and service.store is not None and not answers:
        answers = await service.with_store(who, lambda store: store.get(user)) is not None
    names += [f"{service.name}@{user}"] if user and answers else []
    return {name: {"id": name, **about} for name in names}


_ROUTES = (
    ("/v1/chat/completions", "POST", partial(completions.complete, chat=True)),
    ("/v1/completions", "POST", partial(completions.complete, chat=False)),
    ("/v1/models", "GET", list_models),
    ("/v1/models/{model:path}", "GET", describe_model),
    ("/v1/feedback", "POST", rate),
    ("/v1/vectors", "GET", list_vectors),
    ("/v1/vectors", "PUT", put_vectors),
    ("/v1/vectors/{user}", "PUT", put_vector),
    ("/v1/vectors/{user}", "GET", get_vector),
    ("/v1/vectors/{user}", "DELETE", delete_vector),
    ("/health", "GET", read_health),
    ("/metrics", "GET", read_metrics),
)
_PAGE_ROUTES = (
    ("/", "GET", editor.page_file),
    ("/page/{file}", "GET", editor.page_file),
    ("/v1/page", "GET", editor.page_about),
    ("/v1/page/vector", "POST", editor.page_vector),
)
