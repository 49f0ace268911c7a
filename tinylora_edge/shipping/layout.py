"""The layout of published vectors: a static tree that any web server, CDN or object store can serve.

    <factors id>/<user>/00007.bin     the frame with sequence 7
    <factors id>/<user>/latest        the same bytes as the newest of them

The factors id is the first 4 bytes of the factors' digest in hexadecimal: a user keeps their place when their
vectors grow from 13 numbers to 840. A device asks for `latest` alone: one request, one answer, and where
nothing is new, an answer without a body.
"""

from __future__ import annotations

from ..errors import TransferError
from ..wire.frame import RULE, is_portable

LATEST = "latest"


def directory(factors_id: str, user: str) -> str:
    """Return the folder of a user; TransferError where the name is not safe in a path and an address."""
    if not is_portable(user):
        raise TransferError(f"user {user!r} is no name that is safe in a path: {RULE}")
    return f"{factors_id}/{user}"


def latest(factors_id: str, user: str) -> str:
    """Return the path of a user's newest frame. Errors: those of `directory`."""
    return f"{directory(factors_id, user)}/{LATEST}"


def numbered(factors_id: str, user: str, sequence: int) -> str:
    """Return the path of the frame with a sequence. Errors: those of `directory`."""
    return f"{directory(factors_id, user)}/{sequence:05d}.bin"
