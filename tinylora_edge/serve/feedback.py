"""Clicks over HTTP: answers that are remembered for a while, and vectors that learn from them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import RequestError, StoreError
from ..runtime.feedback.given import Given
from ..vector import MicroVector, Policy
from .failures import RefusedError
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
        frame: that makes a frame of a vector, signed where the server has a key.
        basis_id: of the vectors.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        learner: Learner,
        folder: Path,
        *,
        store: Store,
        policy: Policy,
        frame: Framer,
        basis_id: str,
    ) -> None:
        self._learner, self._store, self._policy, self._frame = learner, store, policy, frame
        self._folder = folder / basis_id
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._answers: OrderedDict[str, _Remembered] = OrderedDict()
        self._lock = threading.Lock()

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
            TrainError, VectorError, StoreError, OSError: nothing was learned, or nothing was stored.
        """
        (found,) = self._find([name], key_user)
        vector = self._learner.tell(self._path(found.user), found.given, reward)
        return self._put(found.user, vector, [name])

    def prefer(self, better: str, worse: str, key_user: str | None) -> Stored:
        """Learn which of two answers is better; return the user's vector of now. Errors: those of `tell`."""
        first, second = self._find([better, worse], key_user)
        if first.user != second.user or better == worse:
            raise RequestError("only two answers to one user can be compared", param="worse")
        vector = self._learner.prefer(self._path(first.user), first.given, second.given)
        return self._put(first.user, vector, [better, worse])

    def _find(self, names: list[str], key_user: str | None) -> list[_Remembered]:
        found = []
        for name in names:
            with self._lock:
                answer = self._answers.get(name)
            if answer is None or key_user not in (None, answer.user):
                message = f"answer {name[:80]!r} is not remembered, or was told about: tell soon, and once"
                raise RefusedError(404, message, "answer_not_found", "id")
            if not answer.user:
                raise RequestError("the answer was given to nobody: ask with a user's name", param="user")
            check_user(answer.user)
            found.append(answer)
        return found

    def _path(self, user: str) -> Path:
        return self._folder / f"{user}.state"

    def _put(self, user: str, vector: MicroVector, names: list[str]) -> Stored:
        before = self._store.get(user)
        sequence = 1 if before is None else before.sequence + 1
        if sequence >= 1 << 16:
            raise StoreError(f"user {user!r} has sequence 65535, and none is left above: begin a new key")
        frame = self._frame(MicroVector(vector.values, sequence=sequence), user)
        stored = self._store.put(user, frame, self._policy)
        with self._lock:
            for name in names:
                self._answers.pop(name, None)
        return stored


class Framer(Protocol):
    """What makes the frame of a user's vector, signed where the server has a key."""

    def __call__(self, vector: MicroVector, user: str) -> bytes:
        """Return the frame, which is bound to the user's stream."""
