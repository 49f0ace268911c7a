"""The visitor of a page: one person, who has its token."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from ..store import check_user

_TOKEN_BYTES = 24


def _new_token() -> str:
    return secrets.token_urlsafe(_TOKEN_BYTES)


@dataclass(frozen=True)
class Visitor:
    """The one person whom a page is for.

    Attributes:
        user: his name, which is also that of his stream of vectors.
        vector: a frame that his page begins with; None for what the store has of him, or the base.
        token: that the page's requests carry as their API key. It stands for this user and nobody else.

    Raises:
        RequestError: the name is none of a user.
    """

    user: str = "me"
    vector: bytes | None = field(default=None, repr=False)
    token: str = field(default_factory=_new_token, repr=False)

    def __post_init__(self) -> None:
        check_user(self.user)

    def address(self, origin: str) -> str:
        """Return the page's address on a server: the token is behind the #, which no browser sends."""
        return f"{origin}/#token={self.token}"
