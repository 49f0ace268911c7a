"""The editor of a visitor's vector: values become frames, and frames values, by the rules of the server."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...basis import Basis
from ...errors import ChecksumError, RequestError, VectorError
from ...runtime.drift import Drift
from ...vector import FIRST_SEQUENCE, MicroVector, Policy
from ...wire import text
from ..store import Store, Stored
from .visitor import Visitor

_DTYPE = "bf16"  # 37 bytes for 13 values, and steps finer than those of a slider
_REACH = 1.0  # of a slider, where no prior says how large values are
_LARGEST = 1e30  # far beyond what any model bears, and within float32 and bf16
_DEVIATIONS = 3.0  # of the prior, that a slider reaches


@dataclass(frozen=True)
class Edited:
    """A vector in the visitor's hands.

    Attributes:
        vector: its values, as they were set, learned or read.
        frame: its bytes, of the visitor's stream; there they are rounded.
    """

    vector: MicroVector
    frame: bytes

    def record(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "object": "page.vector",
            "values": [float(value) for value in self.vector.values.reshape(-1)],
            "norm": self.vector.norm,
            "sequence": self.vector.sequence,
            "vector": text.encode(self.frame),
            "bytes": len(self.frame),
        }


class VectorEditor:
    """What a visitor does with his vector: he moves its values, opens a frame, and finds what clicks made.

    A frame that he opens by hand may be older than what clicks have taught since. The order of sequences
    binds those who deliver vectors, and not the one whose vector it is. So it is checked like any other, but
    for its sequence, and framed anew.

    Args:
        basis: of the vectors.
        policy: of the server. It has to take frames with a checksum.
        visitor: whose vector it is.
        store: with what clicks made of it; None where nothing is kept.
        measure: returns the drift of a vector, by forward passes.

    Raises:
        VectorError: the policy would refuse every frame that is made here, or the visitor's first vector.
    """

    def __init__(
        self,
        basis: Basis,
        policy: Policy,
        visitor: Visitor,
        store: Store | None,
        measure: Callable[[MicroVector], Drift],
    ) -> None:
        self._basis, self._policy, self._visitor, self._store = basis, policy, visitor, store
        self._measure, self._measuring = measure, threading.Lock()
        try:
            policy.check(MicroVector.zeros(basis).to_bytes(basis), basis)
        except VectorError as error:
            raise VectorError(
                "a page makes vectors of what its sliders say, which nobody has signed, and this server "
                f"would refuse them all: leave out its keys and what it requires ({error})"
            ) from None
        self._first, self._before = MicroVector.zeros(basis), 0
        if visitor.vector is not None:  # it comes before what was stored until now
            self._first = self.opened(visitor.vector).vector
            self._before = self._sequence()

    @property
    def user(self) -> str:
        """The visitor's name."""
        return self._visitor.user

    def present(self) -> Edited:
        """Return what clicks made of the vector, or the one that the page begins with, or the base: zeros.

        Raises:
            VectorError: what the store has is refused.
            StoreError: the store cannot be read.
        """
        return self.learned() if self._sequence() > self._before else self._framed(self._first)

    def learned(self) -> Edited:
        """Return what clicks made of the vector, in earlier sessions too; zeros where there were none.

        Errors: those of `present`.
        """
        stored = self._stored()
        return self._framed(MicroVector.zeros(self._basis) if stored is None else self._read(stored.frame))

    def made(self, values: Sequence[Any]) -> Edited:
        """Return a vector of these values.

        Raises:
            RequestError: they are no numbers, or absurd ones.
            VectorError: they are too many or too few, or their norm is larger than the policy takes.
        """
        if not all(type(value) in (int, float) and abs(value) <= _LARGEST for value in values):
            raise RequestError(f"values are numbers from -{_LARGEST:g} to {_LARGEST:g}", param="values")
        return self._framed(MicroVector(self._basis.values(values)))

    def opened(self, data: bytes) -> Edited:
        """Return the vector in the bytes of a file: a frame, a raw payload, or the text of one.

        Raises:
            VectorError: the policy refuses it; the subclass says why.
        """
        return self._framed(self._read(text.decode(data) if text.is_text(data) else data))

    def drift(self, frame: bytes) -> Drift:
        """Return how far a frame moves the model from its base in general; measurements take turns.

        Raises:
            VectorError: the frame is refused.
            TrainError: the vector is too large for the model.
        """
        vector = self._read(frame)
        with self._measuring:
            return self._measure(vector)

    def reach(self) -> float:
        """Return how far from 0 a slider goes: as far as vectors that people want do, where a prior says."""
        prior = self._basis.prior
        if prior is None:
            return _REACH
        spread = abs(prior.mean) + _DEVIATIONS * prior.covariance.diagonal() ** 0.5
        return math.ceil(float(spread.max()) * 10) / 10

    def _read(self, data: bytes) -> MicroVector:
        """Return a vector of the visitor's stream, or of the one without a name, as files mostly are."""
        rules = Policy(max_norm=self._policy.max_norm)  # which remembers no sequence
        try:
            return rules.check(data, self._basis, stream=self._visitor.user)
        except ChecksumError:
            return rules.check(data, self._basis)

    def _framed(self, vector: MicroVector) -> Edited:
        user = self._visitor.user
        accepted = self._policy.highest(self._basis, stream=user)
        sequence = max(self._sequence(), accepted, FIRST_SEQUENCE)
        frame = MicroVector(vector.values, _DTYPE, sequence).to_bytes(self._basis, stream=user)
        self._policy.check(frame, self._basis, stream=user)
        return Edited(MicroVector(vector.values, sequence=sequence), frame)

    def _stored(self) -> Stored | None:
        return None if self._store is None else self._store.get(self._visitor.user)

    def _sequence(self) -> int:
        """Return the highest sequence that was stored for the visitor: also of what was deleted."""
        return 0 if self._store is None else self._store.last(self._visitor.user)
