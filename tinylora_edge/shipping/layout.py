"""The layout of published vectors: a static tree that any web server, CDN or object store can serve.

    <factors id>/<user>/00007.bin     the frame with sequence 7
    <factors id>/<user>/latest        the same bytes as the newest of them

The factors id is the first 4 bytes of the factors' digest in hexadecimal: a user keeps its place when its
vectors grow from 13 numbers to 840. A device asks for `latest`
alone: one request, one answer, and where nothing is new, an answer without a body.
"""

from __future__ import annotations

import re

from ..errors import TransferError

LATEST = "latest"
DEFAULT_USER = "default"

_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_FACTORS_ID = re.compile(r"[0-9a-f]{8}\Z")


def directory(factors_id: str, user: str) -> str:
    """Return the folder of a user.

    Raises:
        TransferError: a name that is not safe in a path and an address.
    """
    if not _FACTORS_ID.match(factors_id):
        raise TransferError(f"{factors_id!r} is no id of factors: expected 8 hexadecimal digits")
    if not is_user(user):
        raise TransferError(
            f"user {user!r} is no name that is safe in a path: use 1 to 64 of A-Z a-z 0-9 . _ and -, "
            "beginning with a letter or digit"
        )
    return f"{factors_id}/{user}"


def is_user(name: str) -> bool:
    """Tell whether a name is that of a user which can be published."""
    return _USER.match(name) is not None


def latest(factors_id: str, user: str) -> str:
    """Return the path of a user's newest frame. Errors: those of `directory`."""
    return f"{directory(factors_id, user)}/{LATEST}"


def bound_name(user: str) -> str:
    """Return the name that frames of a published user are bound to: the default one is without a name."""
    return "" if user == DEFAULT_USER else user


def numbered(factors_id: str, user: str, sequence: int) -> str:
    """Return the path of the frame with a sequence. Errors: those of `directory`."""
    return f"{directory(factors_id, user)}/{sequence:05d}.bin"
