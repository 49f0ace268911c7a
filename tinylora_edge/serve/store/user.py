"""Users of a store: their names, what is stored of each, and the interface that all stores have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ...errors import RequestError, StoreError
from ...shipping import layout
from ...vector import Policy
from ...wire.marks import Marks


@dataclass(frozen=True)
class Stored:
    """The vector of a user.

    Attributes:
        user: whose it is.
        frame: its bytes; a policy decides at each request whether they are applied.
        sequence: of the frame.
        made: when the user's first vector came, in seconds since 1970; 0 where that is not known.
        changed: when this one came; 0 likewise.
    """

    user: str
    frame: bytes
    sequence: int
    made: float = 0.0
    changed: float = 0.0


class Store(Protocol):
    """A store of users' vectors for one basis. Any thread may call it.

    Attributes:
        marks: where the sequences that were accepted are kept; None leaves it to the policy.
    """

    marks: Marks | None

    def get(self, user: str) -> Stored | None:
        """Return a user's vector; None where he has none.

        Raises:
            StoreError: the store cannot be read.
        """

    def last(self, user: str) -> int:
        """Return the sequence of a user's vector, or of one that was deleted; 0 where he never had any.

        Raises:
            StoreError: the store cannot be read.
        """

    def put(self, user: str, frame: bytes, policy: Policy) -> Stored:
        """Store a user's vector, once a policy accepts it; the one before is gone.

        Raises:
            VectorError: the policy refuses it; the subclass says why. The store stays as it was.
            StoreError: the store cannot be written; it stays as it was.
        """

    def delete(self, user: str) -> bool:
        """Remove a user's vector, and remember its sequence; say whether there was one.

        Raises:
            StoreError: the store cannot be written, or deletes nothing.
        """

    def users(self, after: str = "") -> Iterator[Stored]:
        """Yield the vectors of all users whose names come after one, in the order of the names.

        Raises:
            StoreError: the store cannot be read, or cannot list.
        """

    def close(self) -> None:
        """Close it. Again is fine."""


def check_user(name: str) -> str:
    """Return the name of a user if it is one: a user is a stream of the published layout.

    The layout calls the stream without a name `default`. It is nobody's in particular, so it is no user's:
    one store would hold his frames to the one stream, and another to the other.

    Raises:
        RequestError: it is not.
    """
    if name == layout.DEFAULT_STREAM:
        raise RequestError(
            f"{name!r} is no name of a user: it stands for the stream without a name, which is nobody's. Use "
            "another name",
            param="user",
        )
    if not layout.is_stream(name):
        raise RequestError(
            f"{name[:80]!r} is no name of a user: use 1 to 64 of A-Z a-z 0-9 . _ and -, beginning with a "
            "letter or digit",
            param="user",
        )
    return name


def unreadable(where: object, error: object) -> StoreError:
    """Return the error of a store that fails."""
    return StoreError(f"the store {where} cannot be used: {error}")
