"""The app: routes over a service, for any ASGI server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from ..errors import OptionError, TinyLoraError
from ..formats.bundle import Bundle
from ..runtime.feedback.clicks import Clicks
from ..runtime.pool.pool import Pool
from ..vector import Policy
from ..wire.tags import Signer, Verifier
from . import completions, routes
from .access import ApiKeys, Limits
from .editor import VectorEditor, Visitor
from .exchange import Exchanges, told, unknown_route
from .feedback import Feedback, check_feedback
from .service import Service
from .store import open_store

_ROUTES = (
    ("/v1/chat/completions", "POST", completions.chat),
    ("/v1/completions", "POST", completions.complete),
    ("/v1/models", "GET", routes.models),
    ("/v1/models/{model:path}", "GET", routes.model),
    ("/v1/feedback", "POST", routes.tell),
    ("/v1/vectors/{user}", "PUT", routes.put_vector),
    ("/v1/vectors/{user}", "GET", routes.get_vector),
    ("/v1/vectors/{user}", "DELETE", routes.delete_vector),
    ("/health", "GET", routes.health),
    ("/metrics", "GET", routes.metrics),
)
_PAGE_ROUTES = (
    ("/", "GET", routes.page_file),
    ("/page/{file}", "GET", routes.page_file),
    ("/v1/page", "GET", routes.page_about),
    ("/v1/page/vector", "POST", routes.page_vector),
    ("/v1/page/qr", "POST", routes.page_qr),
)


def app(
    bundle: str | PathLike[str],
    *,
    store: str | PathLike[str] | None = None,
    name: str | None = None,
    keys: tuple[Verifier, ...] | list[Verifier] = (),
    keyring: str | PathLike[str] | None = None,
    require: str | None = None,
    max_norm: float = float("inf"),
    state: str | PathLike[str] | None = None,
    api_keys: Mapping[str, str | None] | ApiKeys | None = None,
    limits: Limits | None = None,
    states: str | PathLike[str] | None = None,
    signer: Signer | None = None,
    visitor: Visitor | None = None,
    **pool_options: Any,
) -> Starlette:
    """Return a server of a bundle as an ASGI app, its model loaded.

    Args:
        bundle: as for `runtime.load`.
        store: of users' vectors: an SQLite file, or a directory or address in the published layout. Without
            one, clients bring their vectors along.
        name: of the model, as clients ask for it; by default that of the bundle's folder.
        keys, keyring, require, max_norm: of the policy that every vector is checked by, at every request (see
            `Policy`).
        state: a file that keeps the sequences where the store does not.
        api_keys: that are taken: key -> its one user, or None for an app's key. None asks for no key.
        limits: of every client.
        states: a folder, made where it does not exist, for what clicks say of each user: with it the server
            learns from `POST /v1/feedback`, and needs a store.
        signer: of the vectors that it learns; None for a checksum.
        visitor: for whom the app has a page, at `/`; None for no page. His token is an API key, and without
            others the only one.
        pool_options: those of `runtime.Pool`.

    Raises:
        OptionError: the name has an @.
        Those of `runtime.Pool`, `Policy` and the stores.
    """
    name = name or Path(bundle).resolve().name.removesuffix(".gguf")
    if "@" in name:
        raise OptionError(
            f"the model's name {name!r} has an @, behind which clients name a user: pass another (--name)"
        )
    basis = Bundle.find(bundle).basis
    opened = None if store is None else open_store(store, basis)
    try:
        marks = state if state is not None or opened is None else opened.marks
        policy = Policy(require, keys=keys, keyring=keyring, max_norm=max_norm, state=marks)
        given = api_keys if api_keys is None or isinstance(api_keys, ApiKeys) else ApiKeys(api_keys)
        limits = limits or Limits()
        if states is not None:
            if opened is None:
                raise TinyLoraError("a server that learns from clicks keeps vectors: name a store too")
            check_feedback(policy, basis, signer)
        editor = None
        if visitor is not None:
            editor = VectorEditor(basis, policy, visitor, opened)
            given = (given or ApiKeys({})).joined(visitor.token, visitor.user)
        pool = Pool(bundle, policy=policy, waiting=limits.requests, **pool_options)
    except BaseException:
        if opened is not None:
            opened.close()
        raise

    service = Service(pool, name=name, store=opened, keys=given, limits=limits)
    if states is not None and opened is not None:
        clicks = Clicks(basis, pool.scorer())
        service.feedback = Feedback(
            clicks, Path(states), store=opened, policy=policy, basis=basis, signer=signer
        )
    if editor is not None:
        service.editor = editor
        service.trust("localhost", "127.0.0.1", "::1")

    @asynccontextmanager
    async def lifespan(made: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    served = _ROUTES if editor is None else _ROUTES + _PAGE_ROUTES
    made = Starlette(
        routes=[Route(path, told(handler), methods=[method]) for path, method, handler in served],
        middleware=[Middleware(Exchanges, service=service)],
        exception_handlers={HTTPException: unknown_route},
        lifespan=lifespan,
    )
    made.state.service = service
    return made
