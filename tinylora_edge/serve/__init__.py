"""The server: an OpenAI-compatible interface in which every request has its user's vector.

    from tinylora_edge import serve
    application = serve.app("bundle", store="users.db")   # for any ASGI server: uvicorn, hypercorn, ...

`tinylora-edge serve BUNDLE` runs one. Needs the extra `serve`; `store` needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from .access import ApiKeys, Limits, check_exposure

if TYPE_CHECKING:
    from .application import app
    from .process import run

__all__ = ["ApiKeys", "Limits", "app", "check_exposure", "run"]

_LAZY = {"app": ".application", "run": ".process"}  # these import the packages of `_WEB`
_WEB = ("anyio", "prometheus_client", "pydantic", "sse_starlette", "starlette", "uvicorn")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name], __name__), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _WEB:
            raise
        raise MissingExtraError("the server", package.replace("_", "-"), "serve") from None
