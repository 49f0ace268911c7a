"""What a server lets its clients do: limits, API keys, and the error of a refused request.

It imports no web framework, so that `serve --help` works without one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

from ..errors import RequestError, TinyLoraError
from ..limits import BODY_BYTES
from ..shipping.fetch import is_this_device
from ..writes import open_file
from .store import check_user

_KEY = re.compile(r"[\x21-\x7e]{8,512}\Z")


@dataclass(frozen=True)
class Limits:
    """What a server lets its clients ask for.

    Attributes:
        requests: most that are open at the same time, waiting ones included; no account may have all of them
            (see `Shares`).
        body: most bytes of a request's body.
        tokens: most tokens of an answer.
    """

    requests: int = 1024
    body: int = BODY_BYTES
    tokens: int = 4096


@dataclass
class RefusedError(Exception):
    """A request is refused with a status of its own, which no other error of the package stands for."""

    status: int
    message: str
    code: str
    param: str = ""


class ApiKeys:
    """The keys that a server takes, as `Authorization: Bearer KEY`; kept as SHA-256.

    Args:
        keys: key -> the one user that it stands for, or None for a key of an app, which may name any.

    TinyLoraError: a key has fewer than 8 characters, or others than printable ASCII.
    RequestError: a user's name is not valid.
    """

    def __init__(self, keys: Mapping[str, str | None]) -> None:
        self._users: dict[bytes, str | None] = {}
        for key, user in keys.items():
            if not _KEY.match(key):
                rule = "an API key has 8 to 512 printable ASCII characters and no spaces"
                raise TinyLoraError(f"{rule}: one of {len(key)} characters breaks this rule")
            self._users[_hash(key)] = None if user is None else check_user(user)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> ApiKeys:
        """Read a file of keys: a line has a key, or a key and a user. `#` begins a line of comment.
        TinyLoraError: a line is neither, or gives a key to a second user, or there is no key."""
        keys: dict[str, str | None] = {}
        with open_file(path) as file:
            text = file.read().decode("utf-8-sig", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
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

    def find(self, authorization: str) -> tuple[bytes, str | None]:
        """Return the SHA-256 of the key in a request's header, and its user. RefusedError: it is unknown."""
        scheme, _, key = authorization.partition(" ")
        found = _hash(key.strip())
        if scheme.lower() != "bearer" or found not in self._users:
            message = "this server needs one of its API keys: pass 'Authorization: Bearer KEY'"
            raise RefusedError(401, message, "invalid_api_key")
        return found, self._users[found]


def check_exposure(host: str, *, has_keys: bool) -> None:
    """Refuse, with a TinyLoraError, to answer other machines without API keys."""
    if not has_keys and not is_this_device(host):
        raise TinyLoraError(f"{host!r} can be reached by others: pass --api-keys FILE, or serve on 127.0.0.1")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
