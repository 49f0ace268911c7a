"""API keys: who may ask, and as which user."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from os import PathLike

from ..errors import RequestError, TinyLoraError
from ..limits import API_KEYS_BYTES
from .failures import RefusedError
from .store import check_user

_KEY = re.compile(r"[\x21-\x7e]{8,512}\Z")


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
            raise _unknown("this server needs an API key: pass 'Authorization: Bearer KEY'")
        found = _hash(key.strip())
        if found not in self._users:
            raise _unknown("the API key is none that this server takes")
        return self._users[found]


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unknown(message: str) -> RefusedError:
    return RefusedError(401, message, "invalid_api_key", kind="authentication_error")
