"""Failures as OpenAI's clients expect them: a status, and an object with what was wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import (
    BasisMismatchError,
    ChecksumError,
    OptionError,
    OverloadError,
    RequestError,
    RollbackError,
    SignatureError,
    StoreError,
    TinyLoraError,
    VectorError,
)

_VECTOR_CODES = (  # the first that fits
    (SignatureError, "vector_forged"),
    (RollbackError, "vector_stale"),
    (BasisMismatchError, "vector_of_another_basis"),
    (ChecksumError, "vector_damaged"),
    (VectorError, "vector_refused"),
)


@dataclass
class RefusedError(Exception):
    """A request that is refused for a reason of HTTP's own.

    Attributes:
        status: of the response.
        message: what was wrong, and what to do.
        code: for programs.
        param: the part of the request that is wrong.
        kind: `type` of OpenAI's error object.
    """

    status: int
    message: str
    code: str
    param: str = ""
    kind: str = "invalid_request_error"

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Failure:
    """What a client is told.

    Attributes:
        status: of the response.
        body: the error object.
        headers: of the response.
    """

    status: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """The code of the error, for programs."""
        return str(self.body["error"]["code"])


def failure_of(error: BaseException) -> Failure:
    """Return what a client is told of an error: nothing of one that nobody raised on purpose."""
    if isinstance(error, RefusedError):
        return _failure(error.status, error.message, error.code, error.kind, error.param)
    if isinstance(error, RequestError):
        return _failure(400, str(error), error.code, param=error.param)
    if isinstance(error, OptionError):
        return _failure(400, str(error), "invalid_value")
    if isinstance(error, VectorError):
        code = next(code for kind, code in _VECTOR_CODES if isinstance(error, kind))
        return _failure(403, str(error), code, "permission_error", "vector")
    if isinstance(error, OverloadError):
        return _failure(429, str(error), "overloaded", "rate_limit_error", headers={"Retry-After": "1"})
    if isinstance(error, TimeoutError):
        message = "the request took longer than this server lets one take: ask for fewer tokens"
        return _failure(504, message, "timeout", "timeout_error")
    if isinstance(error, StoreError):
        return _failure(503, str(error), "store_unavailable", "server_error")
    if isinstance(error, TinyLoraError):
        return _failure(503, str(error), "unavailable", "server_error")
    return _failure(500, "the server failed; its log says how", "internal_error", "server_error")


def _failure(
    status: int,
    message: str,
    code: str,
    kind: str = "invalid_request_error",
    param: str = "",
    headers: dict[str, str] | None = None,
) -> Failure:
    error = {"message": message, "type": kind, "param": param or None, "code": code}
    return Failure(status, {"error": error}, headers or {})
