"""The app: routes over a service, for any ASGI server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from ..basis import MAX_NORM
from ..errors import OptionError
from ..formats.bundle import load_bundle
from ..runtime.pool import Pool
from ..vector import Policy
from ..wire.tags import Signer, Verifier
from . import completions, editor, routes
from .access import ApiKeys, Limits
from .feedback import Feedback
from .requests import RequestMiddleware, unknown_route
from .service import Service
from .store import Store

_ROUTES = (
    ("/v1/chat/completions", "POST", partial(completions.complete, chat=True)),
    ("/v1/completions", "POST", partial(completions.complete, chat=False)),
    ("/v1/models", "GET", routes.models),
    ("/v1/models/{model:path}", "GET", routes.model),
    ("/v1/feedback", "POST", routes.click),
    ("/v1/vectors/{user}", "PUT", routes.put_vector),
    ("/v1/vectors/{user}", "GET", routes.get_vector),
    ("/v1/vectors/{user}", "DELETE", routes.delete_vector),
    ("/health", "GET", routes.health),
    ("/metrics", "GET", routes.metrics),
)
_PAGE_ROUTES = (
    ("/", "GET", editor.page_file),
    ("/page/{file}", "GET", editor.page_file),
    ("/v1/page", "GET", editor.page_about),
    ("/v1/page/vector", "POST", editor.page_vector),
    ("/v1/page/qr", "POST", editor.page_qr),
)


def app(
    bundle: str | PathLike[str],
    *,
    store: str | PathLike[str] | None = None,
    name: str | None = None,
    keys: Sequence[Verifier] = (),
    max_norm: float = MAX_NORM,
    state: str | PathLike[str] | None = None,
    api_keys: Mapping[str, str | None] | ApiKeys | None = None,
    limits: Limits | None = None,
    states: str | PathLike[str] | None = None,
    signer: Signer | None = None,
    page: bool = False,
    vector: bytes | None = None,
    **pool_options: Any,
) -> Starlette:
    """Return a server of a bundle as an ASGI app, its model loaded.

    Args:
        bundle: as for `runtime.load`.
        store: an SQLite file with users' vectors, made where it does not exist. Without one, clients bring
            theirs along.
        name: of the model, as clients ask for it; by default that of the bundle's folder.
        keys, max_norm: of the policy that checks every vector, at every request (see `Policy`).
        state: a file that keeps the sequences where there is no store.
        api_keys: that are taken: key -> its one user, or None for an app's key. None asks for no key.
        limits: of every client.
        states: a folder, made where it does not exist, for what clicks say of each user: with it the server
            learns from `POST /v1/feedback`, and needs a store.
        signer: of the vectors that it learns; None for a checksum.
        page: whether the app has a page, at `/`, whose token is the only API key; it needs a store.
        vector: a frame that the page begins with; None for what clicks made, or the base.
        pool_options: those of `runtime.Pool`.

    Raises:
        OptionError: the name has an @, or an option lacks another one, or contradicts it.
        Those of `runtime.Pool`, `Policy` and the stores.
    """
    name = name or Path(bundle).resolve().name.removesuffix(".gguf")
    if "@" in name:
        raise OptionError(
            f"the model's name {name!r} has an @, behind which clients name a user: pass another (--name)"
        )
    if store is None and (states is not None or page):
        raise OptionError("a server that learns from clicks keeps vectors: name a store too (--store)")
    if store is not None and state is not None:
        raise OptionError(f"the store {store} keeps the sequences itself: pass no state (--state)")
    if page and api_keys is not None:
        raise OptionError("a page is for one visitor: pass no API keys")
    if api_keys is not None and not isinstance(api_keys, ApiKeys):
        api_keys = ApiKeys(api_keys)
    bases, limits = load_bundle(bundle).bases, limits or Limits()
    opened = edited = feedback = None
    with ExitStack() as unless_made:
        if store is not None:
            opened = Store(store, bases)
            unless_made.callback(opened.close)
        policy = Policy(keys=keys, max_norm=max_norm, state=opened.sequences if opened else state)
        if page and opened is not None:
            edited = editor.VectorEditor(bases, policy, opened, vector)
            api_keys = ApiKeys({edited.token: editor.USER})
        pool = Pool(bundle, policy=policy, waiting=limits.requests, **pool_options)
        unless_made.callback(pool.close)
        if states is not None and opened is not None:
            feedback = Feedback(pool, opened, Path(states), signer)
        unless_made.pop_all()
    service = Service(pool, name=name, store=opened, api_keys=api_keys, limits=limits, feedback=feedback)

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
        middleware=[Middleware(RequestMiddleware, service=service)],
        exception_handlers={HTTPException: unknown_route},
        lifespan=lifespan,
    )
    made.state.service, made.state.editor = service, edited
    return made
