"""Clicks over HTTP: answers that are remembered for a while, and vectors that learn from them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections import Counter, OrderedDict
from contextlib import suppress
from pathlib import Path

from ..errors import RequestError, TrainError
from ..projection import NUMBERS
from ..runtime import Clicks, SampledAnswer
from ..runtime.pool import Pool
from ..runtime.turns import Who
from ..vector import MicroVector, Policy
from ..wire.tags import Signer
from ..writes import sync_directory
from .access import RefusedError
from .store import Store, Stored

_REMEMBERED = 4096  # answers, of all users together
_LEARNING = "++"  # behind a user's name as a state has it, which has no two


class Feedback:
    """Users' clicks on this server's answers: each moves the user's vector, which the store keeps.

    `learn` is called by one thread at a time, and computes for seconds; nothing waits for it. `folder` is for
    users' states, which servers of one store may share; without a signer vectors have a checksum. `under` is
    what lies beneath all of them.

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
        # id -> the account that asked, with the user whose vector it is; the answer
        self._answers = OrderedDict[str, tuple[Who, SampledAnswer]]()
        self._lock = threading.Lock()

    def remember(self, name: str, who: Who, answer: SampledAnswer) -> None:
        """Remember an answer to a user (the tenant) that an account asked for; beyond 4,096 it takes the
        place of one of the account that has most, and in it of the user who has most."""
        with self._lock:
            self._answers[name] = who, answer
            if len(self._answers) > _REMEMBERED:
                asked = [each for each, _ in self._answers.values()]
                account = Counter(each.account for each in asked).most_common(1)[0][0]
                most = Counter(each for each in asked if each.account == account).most_common(1)[0][0]
                del self._answers[next(name for name, (each, _) in self._answers.items() if each == most)]

    def user_of(self, names: list[str], account: str) -> str:
        """Return the user of one answer, or of two that are compared. RefusedError: they are not there, or
        another account asked for them; "" may rate all."""
        with self._lock:
            for name in names:
                if name not in self._answers or account not in ("", self._answers[name][0].account):
                    message = f"answer {name[:80]!r} had no user, was rated already, or is too old"
                    raise RefusedError(404, message, "answer_not_found", "id")
            users = {self._answers[name][0].tenant for name in names}
        if len(set(names)) < len(names) or len(users) > 1:
            raise RequestError("only two answers to one user can be compared", param="worse")
        return users.pop()

    def put(self, user: str, frame: bytes, policy: Policy) -> Stored:
        """Store a vector as `Store.put` does; clicks are forgotten unless it is the one that they made."""
        with self._store.transaction():  # which ends once they are forgotten
            before = self._store.get(user)
            stored = self._store.put(user, frame, policy)
            if before is None or before.frame != frame:
                self._forget(user)
        return stored

    def delete(self, user: str) -> bool:
        """Remove a vector as `Store.delete` does, the user's answers, and what their clicks said. OSError:
        the state cannot be removed."""
        with self._store.transaction():
            self._forget(user)
            return self._store.delete(user)

    def learn(self, names: list[str], account: str, reward: int) -> Stored:
        """Learn from a reward of 1 or -1, or of two answers that the first is better; return the user's new
        vector, whose sequence is above all that were accepted.

        An answer is rated once. A vector that is put meanwhile, or a deletion, wins: the click comes to
        nothing (RefusedError). Where a click on another server was quicker, it is learned from once more.
        """
        user = self.user_of(names, account)
        with self._lock:
            rated = [self._answers.pop(name) for name in names]
        answers = [answer for _, answer in rated]
        # A folder of the click's own, which `_forget` removes: that is how it hears of what came meanwhile.
        made = tempfile.TemporaryDirectory(
            prefix=f"{self._path(user).stem}{_LEARNING}", dir=self._folder, ignore_cleanup_errors=True
        )
        with made as folder:
            try:
                while (stored := self._learned(user, answers, reward, Path(folder))) is None:
                    pass
                return stored
            except BaseException:
                if Path(folder).exists():
                    for name, (who, answer) in zip(names, rated, strict=True):
                        self.remember(name, who, answer)
                raise

    def _learned(self, user: str, answers: list[SampledAnswer], reward: int, folder: Path) -> Stored | None:
        """Learn in a folder; store vector and state, or nothing where the vector is another one by now."""
        before, state, new = self._store.get(user), self._path(user), folder / "state"
        other = self._basis if before is None else self._bases.of_frame(before.frame)
        if other.digest != self._basis.digest or (before is not None and not state.exists()):
            raise RequestError(
                f"the vector of {user!r}, {other.size:,} numbers of basis {other.id}, is not of clicks "
                f"on basis {self._basis.id} here, which would replace it: delete it to begin with clicks",
                param="user",
            )
        accepted = self._policy.highest(self._basis.factors, key=self._signed_by, user=user)
        sequence = 1 + max(accepted, 0 if before is None else before.sequence)
        if sequence >= 1 << 16:
            why = f"user {user!r} has sequence 65535, the last: go on under another name"
            raise RequestError(why, param="user")
        try:
            self._clicks.vector(state)
        except TrainError as error:  # the operator's: it names the file, which is not for clients
            raise OSError(str(error)) from None
        if state.exists():
            shutil.copyfile(state, new)
        try:
            clicks, first, *second = self._clicks, *answers
            learned = clicks.tell(new, first, reward) if reward else clicks.prefer(new, first, *second)
            vector = MicroVector(learned.values, sequence=sequence)
            frame = vector.to_bytes(self._basis, self._signer or "crc32", user=user)
            with self._store.transaction():
                if not folder.exists():
                    raise FileNotFoundError
                if self._store.get(user) != before:
                    return None
                stored = self._store.put(user, frame, self._policy)
                os.replace(new, state)
                sync_directory(self._folder)
                return stored
        except FileNotFoundError:
            if folder.exists():
                raise
            why = f"another vector of {user!r} came, or theirs was deleted, while the click was learned"
            raise RefusedError(409, why, "vector_changed", "id") from None

    def _forget(self, user: str) -> None:
        with self._lock:
            for name in [name for name, (who, _) in self._answers.items() if who.tenant == user]:
                del self._answers[name]
        state = self._path(user)
        for path in self._root.glob(f"*/{state.stem}{_LEARNING}*"):
            with suppress(FileNotFoundError):  # that click has just ended
                shutil.rmtree(path.rename(f"{path}-"))
        for path in self._root.glob(f"*/{state.name}"):  # on earlier bases, too
            path.unlink(missing_ok=True)

    def _path(self, user: str) -> Path:
        name = re.sub("[A-Z]", r"+\g<0>", user)  # some file systems take Alice for alice
        return self._folder / f"{name}.state"
