"""Who may ask a server, how much, and what a refused client is told in OpenAI's error objects."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
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
from ..limits import API_KEYS_BYTES, BODY_BYTES
from .store import check_user

_KEY = re.compile(r"[\x21-\x7e]{8,512}\Z")
_VECTOR_CODES = (  # the first that fits
    (SignatureError, "vector_forged"),
    (RollbackError, "vector_stale"),
    (BasisMismatchError, "vector_of_another_basis"),
    (ChecksumError, "vector_damaged"),
    (VectorError, "vector_refused"),
)


@dataclass(frozen=True)
class Limits:
    """What a server lets its clients ask for.

    Attributes:
        requests: that are worked on at the same time, those that wait included.
        body: bytes of a request's body.
        tokens: of an answer.
        choices: answers to one prompt (`n`).
        seconds: that a request may take, until its last token.
        upload: seconds that a request's body may take to arrive.
        connections: that are open at the same time.

    Raises:
        OptionError: a limit under 1 would let nobody in.
    """

    requests: int = 1024
    body: int = BODY_BYTES
    tokens: int = 4096
    choices: int = 8
    seconds: float = 600.0
    upload: float = 30.0
    connections: int = 16_384

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 1:  # nor NaN
                raise OptionError(f"a limit of {field.name}={value} lets nobody in: pass 1 or more")


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
    """What a client is told: status and headers of the response, and the error object as its body."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """The code of the error, for programs."""
        return str(self.body["error"]["code"])


def failure_of(error: BaseException) -> Failure:
    """Return what a client is told of an error: nothing of one that nobody raised on purpose."""
    server, param, headers = "server_error", getattr(error, "param", None), {}
    if isinstance(error, RefusedError):
        status, message, code, kind = error.status, error.message, error.code, error.kind
    elif isinstance(error, RequestError):
        status, message, code, kind = 400, str(error), error.code, "invalid_request_error"
    elif isinstance(error, OptionError):
        status, message, code, kind = 400, str(error), "invalid_value", "invalid_request_error"
    elif isinstance(error, VectorError):
        code = next(code for kind, code in _VECTOR_CODES if isinstance(error, kind))
        status, message, kind, param = 403, str(error), "permission_error", "vector"
    elif isinstance(error, OverloadError):
        status, message, code, kind = 429, str(error), "overloaded", "rate_limit_error"
        headers = {"Retry-After": "1"}
    elif isinstance(error, TimeoutError):
        message = "the request took longer than this server lets one take: ask for fewer tokens"
        status, code, kind = 504, "timeout", "timeout_error"
    elif isinstance(error, StoreError):
        status, message, code, kind = 503, str(error), "store_unavailable", server
    elif isinstance(error, TinyLoraError):
        status, message, code, kind = 503, str(error), "unavailable", server
    else:
        status, message, code, kind = 500, "the server failed; its log says how", "internal_error", server
    said = {"message": message, "type": kind, "param": param or None, "code": code}
    return Failure(status, {"error": said}, headers)


class ApiKeys:
    """The keys that a server takes, as `Authorization: Bearer KEY`.

    They are kept as SHA-256, so that to look one up says nothing about the others.

    Args:
        keys: key -> the one user that it stands for, or None for a key of an app, which asks for any.

    Raises:
        TinyLoraError: a key is shorter than 8 characters, or has others than printable ASCII.
        RequestError: a user's name is none.
    """

    def __init__(self, keys: Mapping[str, str | None]) -> None:
        self._users: dict[bytes, str | None] = {}
        for key, user in keys.items():
            if not _KEY.match(key):
                raise TinyLoraError(
                    f"an API key has 8 to 512 printable ASCII characters and no spaces; one has {len(key)} "
                    "characters, or others"
                )
            self._users[_hash(key)] = None if user is None else check_user(user)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> ApiKeys:
        """Read a file of keys: a line has a key, or a key and a user. `#` begins a line of comment.

        Raises:
            OSError: it cannot be read.
            TinyLoraError: a line is neither, or there is no key.
        """
        with open(path, "rb") as file:
            data = file.read(API_KEYS_BYTES + 1)
        if len(data) > API_KEYS_BYTES:
            raise TinyLoraError(f"{path} has more than {API_KEYS_BYTES:,} bytes: it is no file of API keys")
        keys: dict[str, str | None] = {}
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            try:
                if len(words) > 2:
                    raise TinyLoraError(f"it has {len(words)} words: a key, or a key and a user")
                key, user = words[0], words[1] if len(words) > 1 else None
                cls({key: user})
                if keys.get(key, user) != user:
                    raise TinyLoraError(
                        f"it gives a key to {user or 'an app'} that an earlier line gave to "
                        f"{keys[key] or 'an app'}: a key stands for one"
                    )
            except (TinyLoraError, RequestError) as error:
                raise TinyLoraError(f"{path}, line {number}: {error}") from None
            keys[key] = user
        if not keys:
            raise TinyLoraError(f"{path} has no API key: put one on each line")
        return cls(keys)

    def joined(self, key: str, user: str) -> ApiKeys:
        """Return these keys and one more. Errors: those of the class."""
        both = ApiKeys({key: user})
        both._users |= self._users
        return both

    def user_of(self, authorization: str) -> str | None:
        """Return the user that a request's key stands for; None for a key of an app.

        Args:
            authorization: the header; empty where there is none.

        Raises:
            RefusedError: there is no key, or none that this server takes.
        """
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "this server needs an API key: pass 'Authorization: Bearer KEY'"
        elif (found := _hash(key.strip())) in self._users:
            return self._users[found]
        else:
            message = "the API key is none that this server takes"
        raise RefusedError(401, message, "invalid_api_key", kind="authentication_error")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
