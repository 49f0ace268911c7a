"""Users' names: whose a vector is. A frame is bound to the name, and a published one lies under it."""

from __future__ import annotations

import re

from ..errors import FrameError
from ..limits import USER_CHARACTERS

DEFAULT_USER = "default"
"""What the user without a name is called where one is needed: in a path, on the command line."""

RULE = "use 1 to 64 of A-Z a-z 0-9 . _ and -, beginning with a letter or digit"
"""The rule of `is_portable`, for errors."""

_PORTABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def is_portable(user: str) -> bool:
    """Tell whether a name is safe in a path and an address: that of a user who can be published or served."""
    return _PORTABLE.match(user) is not None


def bound_name(user: str) -> str:
    """Return the name that frames of a published user are bound to: the default one is without a name."""
    return "" if user == DEFAULT_USER else user


def encoded(user: str) -> bytes:
    """Return a name as a tag is computed over it; FrameError where a policy could not keep it."""
    if len(user) > USER_CHARACTERS:
        raise FrameError(
            f"the user {user[:40]!r}... has {len(user)} characters, and a name has at most "
            f"{USER_CHARACTERS}: choose a shorter one"
        )
    try:
        return user.encode()
    except UnicodeEncodeError:
        raise FrameError(f"the user {user[:40]!r} is no name: it has parts of characters") from None
