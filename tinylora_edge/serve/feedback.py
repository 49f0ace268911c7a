"""Clicks over HTTP: answers that are remembered for a while, and vectors that learn from them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from ..basis import Basis
from ..errors import RequestError, StoreError
from ..runtime.feedback.given import Given
from ..vector import MicroVector, Policy
from ..wire.tags import Signer
from .access import RefusedError
from .store import Store, Stored, check_user

_REMEMBERED = 4096  # answers that may still be told about


class Learner(Protocol):
    """What learns from clicks; see `Clicks`."""

    def tell(self, path: Path, given: Given, reward: int) -> MicroVector:
        """Learn from a like or a dislike."""

    def prefer(self, path: Path, better: Given, worse: Given) -> MicroVector:
        """Learn from a preference."""


@dataclass(frozen=True)
class _Remembered:
    user: str
    given: Given


class Feedback:
    """Users' clicks on this server's answers: each moves his vector, which the store keeps.

    Args:
        learner: over the pool's model.
        folder: of the users' states; a folder in it is made for the basis.
        store: that vectors are put into.
        policy: which they have to pass there.
        basis: of the vectors.
        signer: of them; None for a checksum.

    Raises:
        VectorError: the policy would refuse what is learned here.
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        learner: Learner,
        folder: Path,
        *,
        store: Store,
        policy: Policy,
        basis: Basis,
        signer: Signer | None = None,
    ) -> None:
        self._learner, self._store, self._policy = learner, store, policy
        self._basis, self._signer = basis, signer
        self._signed_by = check_feedback(policy, basis, signer)
        self._folder = folder / basis.id
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._answers: OrderedDict[str, _Remembered] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = threading.Lock()  # what is learned first is stored first

    def remember(self, name: str, user: str, given: Given) -> None:
        """Remember an answer for a while, under the name that the client knows.

        Args:
            name: of the reply; of the second and later choices with `:1` and so on behind it.
            user: whose answer it is; empty for nobody, who teaches nothing.
            given: the answer.
        """
        with self._lock:
            self._answers[name] = _Remembered(user, given)
            while len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)

    def tell(self, name: str, reward: int, key_user: str | None) -> Stored:
        """Learn from a like or a dislike; return the user's vector of now.

        Raises:
            RefusedError: the answer is not remembered, or is another user's.
            RequestError: it was given to nobody.
            TrainError, VectorError, StoreError, OSError: nothing was learned; or what was learned was not
                stored, and comes with the next click.
        """
        return self._told([name], key_user, partial(self._learner.tell, reward=reward))

    def prefer(self, better: str, worse: str, key_user: str | None) -> Stored:
        """Learn which of two answers is better; return the user's vector of now. Errors: those of `tell`."""
        return self._told([better, worse], key_user, self._learner.prefer)

    def forget(self, user: str) -> None:
        """Forget a user's answers, and what his clicks said.

        Raises:
            OSError: the state cannot be removed.
        """
        with self._lock:
            for name in [name for name, answer in self._answers.items() if answer.user == user]:
                del self._answers[name]
        with self._turns, suppress(FileNotFoundError):
            os.unlink(self._path(user))

    def _told(self, names: list[str], key_user: str | None, learn: Callable[..., MicroVector]) -> Stored:
        """Learn of answers, and put the user's new vector behind all that were accepted of him."""
        with self._turns:
            found = self._take(names, key_user)
            user = found[0].user
            try:
                accepted = self._policy.highest(self._basis, key=self._signed_by, stream=user)
                sequence = 1 + max(self._store.last(user), accepted)
                if sequence >= 1 << 16:
                    raise StoreError(
                        f"user {user!r} has sequence 65535, and none is left above: begin a new key"
                    )
                vector = learn(self._path(user), *(answer.given for answer in found))
            except BaseException:
                with self._lock:
                    self._answers |= dict(zip(names, found, strict=True))
                raise
            frame = MicroVector(vector.values, sequence=sequence).to_bytes(
                self._basis, self._signer or "crc32", stream=user
            )
            return self._store.put(user, frame, self._policy)

    def _take(self, names: list[str], key_user: str | None) -> list[_Remembered]:
        """Return answers that are told about, and forget them: nobody tells twice."""
        with self._lock:
            found = [self._find(name, key_user) for name in names]
            if len(set(names)) < len(names) or len({answer.user for answer in found}) > 1:
                raise RequestError("only two answers to one user can be compared", param="worse")
            for name in names:
                del self._answers[name]
        return found

    def _find(self, name: str, key_user: str | None) -> _Remembered:
        answer = self._answers.get(name)
        if answer is None or key_user not in (None, answer.user):
            message = f"answer {name[:80]!r} is not remembered, or was told about: tell soon, and once"
            raise RefusedError(404, message, "answer_not_found", "id")
        if not answer.user:
            raise RequestError("the answer was given to nobody: ask with a user's name", param="user")
        check_user(answer.user)
        return answer

    def _path(self, user: str) -> Path:
        return self._folder / f"{user}.state"


def check_feedback(policy: Policy, basis: Basis, signer: Signer | None) -> str:
    """Check that a policy takes what is learned here; return the id of the key, empty for a checksum.

    Raises:
        VectorError: nobody could use such vectors; the subclass says why.
    """
    zeros = MicroVector.zeros(basis).to_bytes(basis, signer or "crc32")
    return policy.check(zeros, basis).verified_by
