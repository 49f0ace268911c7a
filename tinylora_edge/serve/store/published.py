"""A store in the layout of published vectors: what `publish` wrote is served as it lies there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ...basis import Basis
from ...errors import RequestError, StoreError, TransferError
from ...shipping import layout
from ...shipping.publish import open_target, publish
from ...vector import Policy
from ...wire.frame import sequence_of
from ...wire.marks import Marks
from .user import Stored, check_user, unreadable


class PublishedStore:
    """Users' vectors as `tinylora-edge publish` lays them out, a stream a user.

    What was accepted is not kept in the layout: give the policy a state file.

    Args:
        target: a directory, or an address that fsspec can read (`s3://bucket/vectors`).
        basis: of the vectors.

    Raises:
        StoreError: the target cannot be reached.
        MissingExtraError: the address needs fsspec, or a package of it, that is not installed.
    """

    marks: Marks | None = None

    def __init__(self, target: str, basis: Basis) -> None:
        self._to, self._basis = target, basis
        try:
            self._target = open_target(target)
        except TransferError as error:
            raise StoreError(str(error)) from None

    def get(self, user: str) -> Stored | None:
        """Return a user's vector; see `Store`."""
        try:
            frame = self._target.read(layout.latest(self._basis.id, check_user(user)))
        except (OSError, TransferError) as error:
            raise unreadable(self._to, error) from None
        if frame is None:
            return None
        return Stored(user, frame, sequence_of(frame))

    def last(self, user: str) -> int:
        """Return the sequence of a user's vector; see `Store`."""
        found = self.get(user)
        return 0 if found is None else found.sequence

    def put(self, user: str, frame: bytes, policy: Policy) -> Stored:
        """Publish a user's vector, once a policy accepts it; see `Store`."""
        with policy.admit(frame, self._basis, stream=check_user(user)) as vector:
            try:
                publish(frame, self._basis, self._to, stream=user)
            except TransferError as error:
                raise StoreError(str(error)) from None
        return Stored(user, frame, vector.sequence)

    def delete(self, user: str) -> bool:
        """Refuse: devices hold what was published.

        Raises:
            StoreError: in any case.
        """
        raise StoreError(
            f"{self._to} is a layout of published vectors, from which nothing is deleted: publish a "
            "vector of zeros with a higher sequence"
        )

    def users(self, after: str = "") -> Iterator[Stored]:
        """Yield the vectors of all users, of a directory; see `Store`."""
        folder = Path(self._to) / self._basis.id
        if "://" in self._to:
            raise StoreError(f"{self._to} cannot be listed: name a directory")
        if not folder.is_dir():
            return
        for name in sorted(path.name for path in folder.iterdir() if path.name > after):
            with suppress(RequestError):  # what is no user's is not ours
                found = self.get(name)
                if found is not None:
                    yield found

    def close(self) -> None:
        """Nothing to close."""
