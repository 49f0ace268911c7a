"""Clicks over HTTP: answers that are remembered for a while, and vectors that learn from them."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from ..errors import RequestError, TrainError
from ..projection import NUMBERS
from ..runtime import Clicks, SampledAnswer
from ..runtime.pool import Pool
from ..vector import MicroVector
from ..wire.tags import Signer
from ..writes import locked
from .access import RefusedError
from .store import Store, Stored

_REMEMBERED = 4096  # answers, of all users together


class Feedback:
    """Users' clicks on this server's answers: each moves the user's vector, which the store keeps.

    Its methods but `remember` are called one after the other (`Service.in_turn`). `folder` is for users'
    states, and servers that share it take turns; without a signer vectors have a checksum. `under` is what
    lies beneath all of them.

    VectorError: the policy would refuse what is learned here.
    """

    def __init__(
        self, pool: Pool, store: Store, folder: Path, signer: Signer | None, under: MicroVector | None = None
    ) -> None:
        self._bases, self._policy, self._store, self._signer = pool.bases, pool.policy, store, signer
        self._basis = basis = pool.bases.basis(numbers=NUMBERS)
        zeros = MicroVector.zeros(basis).to_bytes(basis, signer or "crc32")
        self._signed_by = pool.policy.check(zeros, basis).verified_by  # a key's id; empty for a checksum
        self._clicks = Clicks(pool.model, basis=basis, under=under)
        self._root = folder
        self._folder: Path = folder / basis.id
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._answers = OrderedDict[str, tuple[str, SampledAnswer]]()  # id -> its user, the answer
        self._lock = threading.Lock()

    def remember(self, name: str, user: str, answer: SampledAnswer) -> None:
        """Remember an answer; beyond 4,096 it takes the place of one of the user who has most."""
        with self._lock:
            self._answers[name] = user, answer
            if len(self._answers) > _REMEMBERED:
                most = Counter(whose for whose, _ in self._answers.values()).most_common(1)[0][0]
                del self._answers[next(name for name, (whose, _) in self._answers.items() if whose == most)]

    def tell(self, name: str, reward: int, key_user: str | None) -> Stored:
        """Learn from a like or a dislike; return the user's new vector. What was learned and could not be
        stored comes with the next click."""
        with self._turn():
            return self._learned([name], key_user, partial(self._clicks.tell, reward=reward))

    def prefer(self, better: str, worse: str, key_user: str | None) -> Stored:
        """Learn which of two answers is better; return the user's new vector."""
        with self._turn():
            return self._learned([better, worse], key_user, self._clicks.prefer)

    def put(self, user: str, frame: bytes) -> Stored:
        """Store a vector as `Store.put` does; clicks are forgotten unless it is the one that they made."""
        with self._turn(), self._store.transaction():  # which ends once they are forgotten
            before = self._store.get(user)
            stored = self._store.put(user, frame, self._policy)
            if before is None or before.frame != frame:
                self._forget(user)
        return stored

    def forget(self, user: str) -> None:
        """Forget a user's answers, and what their clicks said. OSError: the state cannot be removed."""
        with self._turn():
            self._forget(user)

    def _forget(self, user: str) -> None:
        with self._lock:
            for name in [name for name, (whose, _) in self._answers.items() if whose == user]:
                del self._answers[name]
        for path in self._root.glob(f"*/{self._path(user).name}"):  # on earlier bases, too
            path.unlink(missing_ok=True)

    def _learned(self, names: list[str], key_user: str | None, learn: Callable[..., MicroVector]) -> Stored:
        """Learn from answers, and store the vector with a sequence above all that were accepted."""
        user, answers = self._take(names, key_user)
        try:
            stored = self._store.get(user)
            other = self._basis if stored is None else self._bases.of_frame(stored.frame)
            if other.digest != self._basis.digest or (stored is not None and not self._path(user).exists()):
                raise RequestError(
                    f"the vector of {user!r}, {other.size:,} numbers of basis {other.id}, is not of clicks "
                    f"on basis {self._basis.id} here, which would replace it: delete it to begin with clicks",
                    param="user",
                )
            accepted = self._policy.highest(self._basis.factors, key=self._signed_by, user=user)
            sequence = 1 + max(accepted, 0 if stored is None else stored.sequence)
            if sequence >= 1 << 16:
                why = f"user {user!r} has sequence 65535, the last: go on under another name"
                raise RequestError(why, param="user")
            try:
                self._clicks.vector(self._path(user))
            except TrainError as error:  # the operator's: it names the file, which is not for clients
                raise OSError(str(error)) from None
            vector = learn(self._path(user), *answers)
        except BaseException:
            for name, answer in zip(names, answers, strict=True):
                self.remember(name, user, answer)
            raise
        frame = MicroVector(vector.values, sequence=sequence).to_bytes(
            self._basis, self._signer or "crc32", user=user
        )
        return self._store.put(user, frame, self._policy)

    def _take(self, names: list[str], key_user: str | None) -> tuple[str, list[SampledAnswer]]:
        """Return the user of answers, and the answers; forget them, since each is rated once."""
        with self._lock:
            for name in names:
                if name not in self._answers or key_user not in (None, self._answers[name][0]):
                    message = f"answer {name[:80]!r} had no user, was rated already, or is too old"
                    raise RefusedError(404, message, "answer_not_found", "id")
            users = {self._answers[name][0] for name in names}
            if len(set(names)) < len(names) or len(users) > 1:
                raise RequestError("only two answers to one user can be compared", param="worse")
            (user,) = users
            return user, [self._answers.pop(name)[1] for name in names]

    def _turn(self) -> AbstractContextManager[None]:
        """Keep out other servers: a state that two of them read would be written with the clicks of one."""
        return locked(self._root / "clicks")

    def _path(self, user: str) -> Path:
        name = re.sub("[A-Z]", r"+\g<0>", user)  # some file systems take Alice for alice
        return self._folder / f"{name}.state"
