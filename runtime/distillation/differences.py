"""Finite differences: how log-probabilities change with v, by steps that stand clearly above the noise.

Quantized activations move a token's log-probability by about 0.08 nats, root mean square (SmolLM2, Q4_1),
however small the change of v is. So a step is chosen by what it does, in nats, and not by its length.

The first half of the questions is asked with a step forwards, the second half with one backwards: what is
bent, and not a slope, then has either sign, and half of the evaluations of central differences do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import TrainError
from ..tuning.learner import spread_of

Array = NDArray[np.float64]

Student = Callable[[Array, Sequence[int]], list[Array]]
"""Values float64 [n] and numbers of questions -> log-probabilities float64 [places, k] of each question."""

EFFECT = 0.35
"""Root mean square change of log-probabilities that a step aims at, in nats."""

_ABOVE = 3.0  # noises that it is at least
_REACH = 0.06  # of the first step: change of the modules as a share of what the factors hold, r.m.s.
_GROWTH = 4.0
_TRIES = 5
_WIDE = 2.5  # how far a step may miss its aim, as a factor


class Differences:
    """Steps of finite differences, one for each value of v, which learn their sizes as they are taken.

    Args:
        basis: of the vectors.

    Attributes:
        sizes: float64 [n], of the steps.
        noise: root mean square change of log-probabilities by a change of v of next to nothing, in nats;
            None before anything was measured.
    """

    def __init__(self, basis: Basis) -> None:
        n = basis.size
        self.sizes: Array = np.full(n, _REACH * math.sqrt(n) / max(spread_of(basis), 1e-12))
        self.noise: float | None = None
        self._first = self.sizes.copy()
        self._known = np.zeros(n, bool)

    def slopes(self, ask: Student, at: Array, now: Sequence[Array]) -> NDArray[np.float32]:
        """Return the slopes of log-probabilities, d log p / d v.

        Args:
            ask: the student.
            at: float64 [n], the vector.
            now: log-probabilities at it, for each question float64 [places, k].

        Returns:
            float32 [T, k, n], of the places of all questions.

        Raises:
            TrainError: the model's logits are not finite near the vector.
        """
        questions = range(len(now))
        parts = [list(questions[::2]), list(questions[1::2])]
        known = [np.concatenate([now[q] for q in part]) for part in parts if part]
        if self.noise is None:
            little = at + 1e-3 * self.sizes * (-1.0) ** np.arange(len(at))
            self.noise = change(np.concatenate(ask(little, parts[0])) - known[0], known[0])
        columns = []
        for axis in range(len(at)):
            unit = np.eye(len(at))[axis]
            size, effect, difference = self._step(axis, partial(_ask, ask, at, unit, parts[0]), known[0])
            column: list[Array] = [np.zeros(0)] * len(now)
            backwards = [] if len(known) < 2 else ask(at - size * unit, parts[1])
            for q, rows in zip(parts[0], _split(difference, [len(now[q]) for q in parts[0]]), strict=True):
                column[q] = rows / size
            for q, rows in zip(parts[1], backwards, strict=True):
                column[q] = (now[q] - rows) / size
            columns.append(np.concatenate(column).astype(np.float32))
            if not np.isfinite(columns[-1]).all():
                raise _infinite()
            self._learn(axis, size, effect)
        return np.stack(columns, axis=-1)

    def _step(
        self, axis: int, ask: Callable[[float], list[Array]], known: Array
    ) -> tuple[float, float, Array]:
        """Take a step that is neither lost in the noise nor far too long: its size, effect and difference."""
        if not self._known[axis] and self._known.any():
            self.sizes[axis] *= float(np.median((self.sizes / self._first)[self._known]))
        noise, size = self.noise or 0.0, float(self.sizes[axis])
        for attempt in range(_TRIES):
            difference = np.concatenate(ask(size)) - known
            seen = change(difference, known)
            effect = math.sqrt(max(seen**2 - noise**2, 0.0)) if math.isfinite(seen) else math.inf
            last = attempt == _TRIES - 1
            if not math.isfinite(effect):
                size /= 2 * _GROWTH
            elif not last and seen < 2 * noise:
                size *= _GROWTH
            elif not last and not 1 / _WIDE < effect / self._aim() < _WIDE:
                size *= float(np.clip(self._aim() / max(effect, 1e-12), 1 / _GROWTH, _GROWTH))
            else:
                return size, effect, difference
        raise _infinite()

    def _learn(self, axis: int, size: float, effect: float) -> None:
        """Let the next step of a value come nearer to the aim."""
        factor = float(np.clip(self._aim() / max(effect, 1e-12), 0.5, 2.0))
        self.sizes[axis], self._known[axis] = size * factor, True

    def _aim(self) -> float:
        return max(EFFECT, _ABOVE * (self.noise or 0.0))


def change(difference: Array, logprobs: Array) -> float:
    """Return the root mean square of a change of log-probabilities [places, k], as likely as they are."""
    return float(np.sqrt((np.exp(logprobs) * difference**2).sum(axis=1).mean()))


def _ask(ask: Student, at: Array, unit: Array, questions: Sequence[int], size: float) -> list[Array]:
    return ask(at + size * unit, questions)


def _split(rows: Array, lengths: Sequence[int]) -> list[Array]:
    return np.split(rows, np.cumsum(lengths)[:-1])


def _infinite() -> TrainError:
    return TrainError(
        "the model's logits are not finite near the vector of now: nothing can be learned there"
    )
