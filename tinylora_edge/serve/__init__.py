"""The server: an OpenAI-compatible interface in which every request has its user's vector.

    from tinylora_edge import serve
    application = serve.app("bundle", store="users.db")   # for any ASGI server: uvicorn, hypercorn, ...

`tinylora-edge serve BUNDLE` runs one. Needs the extra `serve`; `store` needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from .access import ApiKeys, Limits

if TYPE_CHECKING:
    from .application import app

__all__ = ["ApiKeys", "Limits", "app", "missing_web"]

_WEB = ("anyio", "prometheus_client", "sse_starlette", "starlette", "uvicorn")


def __getattr__(name: str) -> Any:
    if name != "app":  # which brings the web along
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(".application", __name__).app
    except ModuleNotFoundError as error:
        raise missing_web(error) from None


def missing_web(error: ModuleNotFoundError) -> ImportError:
    """Return the error that names the pip command where the extra is missing, or the error itself."""
    package = (error.name or "").partition(".")[0]
    return MissingExtraError("the server", package.replace("_", "-"), "serve") if package in _WEB else error
