"""Who may ask a server, how much, and what a refused client is told in OpenAI's error objects."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

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
from ..limits import BODY_BYTES
from .store import check_user

if TYPE_CHECKING:
    from ..runtime.turns import Who

_KEY = re.compile(r"[\x21-\x7e]{8,512}\Z")
_TOO_LONG = "the request took longer than this server lets one take: ask for fewer tokens"

# Error, status, code and type of OpenAI's error object; the first that fits. Without a code: the error's own.
_FAILURES: tuple[tuple[type[BaseException], int, str, str], ...] = (
    (RequestError, 400, "", "invalid_request_error"),
    (OptionError, 400, "invalid_value", "invalid_request_error"),
    (SignatureError, 403, "vector_forged", "permission_error"),
    (RollbackError, 403, "vector_stale", "permission_error"),
    (BasisMismatchError, 403, "vector_of_another_basis", "permission_error"),
    (ChecksumError, 403, "vector_damaged", "permission_error"),
    (VectorError, 403, "vector_refused", "permission_error"),
    (OverloadError, 429, "overloaded", "rate_limit_error"),
    (StoreError, 503, "store_unavailable", "server_error"),
    (TinyLoraError, 503, "unavailable", "server_error"),
    (TimeoutError, 504, "timeout", "timeout_error"),
    (BaseException, 500, "internal_error", "server_error"),
)


@dataclass(frozen=True)
class Limits:
    """What a server lets its clients ask for.

    Attributes:
        requests: that are worked on at the same time, those that wait included; nobody has all of them: see
            `Shares`.
        body: bytes of a request's body.
        tokens: of an answer.
        seconds: that a request may take, until its last token.
    """

    requests: int = 1024
    body: int = BODY_BYTES
    tokens: int = 4096
    seconds: float = 600.0


@dataclass
class RefusedError(Exception):
    """A request that is refused for a reason of HTTP's own; `kind` is the `type` of OpenAI's error object."""

    status: int
    message: str
    code: str
    param: str = ""
    kind: str = "invalid_request_error"


def failure_of(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Return status and error object of an answer: nothing of an error that nobody raised on purpose."""
    if isinstance(error, RefusedError):
        status, code, kind, message = error.status, error.code, error.kind, error.message
    else:
        status, code, kind = next(each[1:] for each in _FAILURES if isinstance(error, each[0]))
        code = code or str(getattr(error, "code", ""))
        message = {500: "the server failed; its log says how", 504: _TOO_LONG}.get(status, str(error))
    param = "vector" if isinstance(error, VectorError) else getattr(error, "param", "")
    return status, {"message": message, "type": kind, "param": param or None, "code": code}


@dataclass
class Caller:
    """Who asks.

    Attributes:
        key: SHA-256 of the API key; empty where the server asks for none.
        user: the one user that the key stands for; None for any.
        who: whose places and turns the request takes: the key's, and once its body is read those of the user
            that it names, inside the key's.
    """

    key: bytes = b""
    user: str | None = None
    who: Who = field(init=False)

    def __post_init__(self) -> None:
        self.who = _who(self.key.hex(), self.key.hex())

    def who_of(self, *users: str) -> Who:
        """Return key and users, hashed as one tenant; without a key each is by itself. A user's key has no
        others."""
        if not self.key and not any(users):
            return self.who
        named = users if self.user is None else (self.user,)
        tenant = hashlib.sha256(self.key + json.dumps(named).encode()).hexdigest()
        return _who(self.key.hex() or tenant, tenant)


def _who(account: str, tenant: str) -> Who:
    from ..runtime.turns import (
        Who,
    )  # with which every engine-free part of the runtime is loaded: not for --help

    return Who(account, tenant)


class ApiKeys:
    """The keys that a server takes, as `Authorization: Bearer KEY`; kept as SHA-256.

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
            TinyLoraError: a line is neither, or gives a key to a second user, or there is no key.
        """
        keys: dict[str, str | None] = {}
        for number, line in enumerate(Path(path).read_text("utf-8", errors="replace").splitlines(), 1):
            key, *users = line.split() or ["#"]
            if key.startswith("#"):
                continue
            user = users[0] if users else None
            try:
                if len(users) > 1 or keys.get(key, user) != user:
                    raise TinyLoraError("a line has a key, or a key and the one user that it stands for")
                cls({key: user})
            except (TinyLoraError, RequestError) as error:
                raise TinyLoraError(f"{path}, line {number}: {error}") from None
            keys[key] = user
        if not keys:
            raise TinyLoraError(f"{path} has no API key: put one on each line")
        return cls(keys)

    def caller(self, authorization: str) -> Caller:
        """Return whom a request's key stands for. RefusedError: it is unknown."""
        scheme, _, key = authorization.partition(" ")
        found = _hash(key.strip())
        if scheme.lower() != "bearer" or found not in self._users:
            message = "this server needs one of its API keys: pass 'Authorization: Bearer KEY'"
            raise RefusedError(401, message, "invalid_api_key", kind="authentication_error")
        return Caller(found, self._users[found])


@dataclass
class Access:
    """Who may ask.

    Attributes:
        keys: that are taken; None asks for no key.
        hosts: that a request without a key has to be to; empty for any. A web page whose name leads to
            127.0.0.1 would otherwise be taken for this server's own.
    """

    keys: ApiKeys | None = None
    hosts: frozenset[str] = field(default_factory=frozenset)

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Return who asks. RefusedError: no such key, or another host."""
        if self.keys is not None:
            return self.keys.caller(headers.get("authorization", ""))
        host = None
        with suppress(ValueError):  # brackets that do not match
            host = urlsplit(f"//{headers.get('host', '')}").hostname
        if self.hosts and host not in self.hosts:
            message = f"this server is not {str(host)[:80]!r}: ask it as {', '.join(sorted(self.hosts))}"
            raise RefusedError(403, message, "wrong_host", kind="permission_error")
        return Caller()


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
