"""Clicks over HTTP: answers in the store that wait for a click, and vectors that learn from clicks."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ..errors import RequestError, TrainError
from ..projection import NUMBERS
from ..runtime import Clicks, SampledAnswer
from ..runtime.pool import Pool
from ..runtime.turns import Who
from ..vector import LAST_SEQUENCE, MicroVector
from ..wire.tags import Signer
from .access import RefusedError
from .store import Store, Stored

_TRIES = 8  # how often a click is learned from, while clicks on other servers change the same user's vector


class Feedback:
    """Moves users' vectors by their clicks on answers of any server of the store.

    `learn` computes for seconds; one thread at a time may call it. Without a signer, vectors have a checksum.
    `under` lies beneath all of them, on all servers of the store.

    VectorError: the policy would refuse what is learned here.
    """

    def __init__(
        self, pool: Pool, store: Store, signer: Signer | None, under: MicroVector | None = None
    ) -> None:
        self._bases, self._policy, self._store, self._signer = pool.bases, pool.policy, store, signer
        self._basis = basis = pool.bases.basis(numbers=NUMBERS)
        zeros = MicroVector.zeros(basis).to_bytes(basis, signer or "crc32")
        self._signed_by = pool.policy.check(zeros, basis).verified_by  # a key's id; empty for a checksum
        self._clicks, self._under = Clicks(pool.model, basis=basis, under=under), under

    def remember(self, name: str, who: Who, answer: SampledAnswer) -> None:
        """Store an answer to a user (`who.tenant`), for which an account asked, until its click.

        The last 64 of the account and user are kept, for a day. An answer under a vector of another basis
        teaches nothing, and is not stored.
        """
        # The answer's own vector: its values, [] for `under` alone, or None for the base.
        vector, values = answer.vector, None
        if vector is not None:
            own = vector != self._under
            if own and vector.basis != self._basis.digest:
                return
            values = vector.values.tolist() if own else []
        content = {"prompt": answer.prompt, "tokens": answer.tokens, "temperature": answer.temperature}
        data = json.dumps(content | {"values": values}, separators=(",", ":")).encode()
        self._store.remember(name, who.account, who.tenant, data)

    def user_of(self, names: list[str], account: str) -> str:
        """Return the user of one answer, or of two that are compared. RefusedError: an answer is not there,
        or another account asked for it; the account "" may rate all."""
        return self._waiting(names, account)[0]

    def learn(self, names: list[str], account: str, reward: int) -> Stored:
        """Learn that an answer has a reward of 1 or -1, or that the first of two is better (reward 0).

        Returns the user's new vector, whose sequence is above all that were accepted. An answer can be rated
        once: it leaves the store when what was learned is stored. If a vector is put or deleted meanwhile,
        nothing is learned (RefusedError). If a click on another server was stored meanwhile, this one is
        learned from again.
        """
        user, answers = self._waiting(names, account)
        for _ in range(_TRIES):
            if (stored := self._learned(user, names, answers, reward)) is not None:
                return stored
            try:
                self._waiting(names, account)
            except RefusedError:
                why = f"another vector of {user!r} came, or theirs was deleted, while the click was learned"
                raise RefusedError(409, why, "vector_changed", "id") from None
        raise RefusedError(503, f"too many clicks of {user!r} at once: send it again", "overloaded", "id")

    def _learned(
        self, user: str, names: list[str], answers: list[SampledAnswer], reward: int
    ) -> Stored | None:
        """Learn, and store vector and state; None, and nothing stored, where these have changed meanwhile."""
        before, (revision, state) = self._store.get(user), self._store.clicks(user, self._basis.digest)
        other = self._basis if before is None else self._bases.of_frame(before.frame)
        if other.digest != self._basis.digest or (before is not None and state is None):
            raise RequestError(
                f"the vector of {user!r}, {other.size:,} numbers of basis {other.id}, is not of clicks "
                f"on basis {self._basis.id} here, which would replace it: delete it to begin with clicks",
                param="user",
            )
        accepted = self._policy.highest(self._basis.factors, key=self._signed_by, user=user)
        sequence = 1 + max(accepted, 0 if before is None else before.sequence)
        if sequence > LAST_SEQUENCE:
            why = f"user {user!r} has sequence {LAST_SEQUENCE}, the last: go on under another name"
            raise RequestError(why, param="user")
        with tempfile.TemporaryDirectory(prefix="tinylora-clicks-") as folder:
            path = Path(folder) / f"{user}.state"
            if state is not None:
                path.write_bytes(state)
            try:
                self._clicks.vector(path)
            except TrainError as error:  # a damaged state is the operator's concern, not the client's
                raise OSError(f"the clicks of a user in the store: {error}") from None
            if reward:
                learned = self._clicks.tell(path, answers[0], reward)
            else:
                learned = self._clicks.prefer(path, *answers)
            state = path.read_bytes()
        vector = MicroVector(learned.values, sequence=sequence)
        frame = vector.to_bytes(self._basis, self._signer or "crc32", user=user)
        return self._store.learned(user, frame, self._policy, names, (revision, self._basis.digest, state))

    def _waiting(self, names: list[str], account: str) -> tuple[str, list[SampledAnswer]]:
        """Return the user of answers, and the answers. Errors: those of `user_of`."""
        found, answers = self._store.answers(names), []
        for name in names:
            if name not in found or account not in ("", found[name][0]):
                message = f"answer {name[:80]!r} had no user, was rated already, or is too old"
                raise RefusedError(404, message, "answer_not_found", "id")
            answers.append(self._read(found[name][2]))
        users = {user for _, user, _ in found.values()}
        if len(set(names)) < len(names) or len(users) > 1:
            raise RequestError("only two answers to one user can be compared", param="worse")
        return users.pop(), answers

    def _read(self, data: bytes) -> SampledAnswer:
        found = json.loads(data)
        values, vector = found["values"], self._under if found["values"] is not None else None
        if values:
            vector = MicroVector(self._basis.values(values), basis=self._basis.digest, under=self._under)
        prompt, tokens = tuple(found["prompt"]), tuple(found["tokens"])
        return SampledAnswer(prompt, tokens, vector, found["temperature"])
