"""Gauss-Newton in a few numbers: what log-probabilities say of v, as a linear model of them. No engine.

A student's log-probabilities l(v) of some outcomes at each of T places are taken to be linear in v, up to
what makes them sum to 1: l(v + d) ~ l + J d - log sum exp(l + J d). The mean KL from a teacher is then a
convex function of d. It is minimized as it is, not as its quadratic approximation: where a teacher says
what the student would never say, a quadratic step would be many times too long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...prior import Prior

Array = NDArray[np.float64]

_ITERATIONS = 50
_FLOOR = 1e-3  # information that every direction has at least, as a share of the mean one's
_ENOUGH = 1e-7  # nats: a smaller gain ends the iterations
_BISECTIONS = 30


@dataclass(frozen=True)
class Linear:
    """A linear model of a student's log-probabilities around a vector.

    Attributes:
        at: float64 [n], the vector.
        teacher: float64 [T, k], log-probabilities of the teacher; every row sums to 1.
        student: float64 [T, k], those of the student at `at`.
        slopes: float [T, k, n], d student / d v.
        prior: of the vector, or None. It weighs as much as one place of T.
    """

    at: Array
    teacher: Array
    student: Array
    slopes: NDArray[np.floating]
    prior: Prior | None = None

    def information(self) -> Array:
        """Return the mean Fisher information of a place, float64 [n, n]: d' F d / 2 is the KL of a step d."""
        found = _information(self.student, self.slopes)
        n = len(found)
        return found + (_FLOOR * float(np.trace(found)) / n + 1e-12) * np.eye(n)

    def effect(self, step: Array) -> float:
        """Return how far a step goes: root mean square of the log-probabilities' change, in nats."""
        return math.sqrt(max(float(step @ self.information() @ step), 0.0))

    def solve(self, *, damping: float, farthest: float) -> Array:
        """Return the step, float64 [n], that minimizes the mean KL, the prior's term and a damping.

        Args:
            damping: of damping * d' F d / 2.
            farthest: `effect` that the step has at most; a higher damping sees to it.
        """
        information = self.information()
        step = self._minimize(damping * information)
        if self.effect(step) <= farthest:
            return step
        low, high = np.log(max(damping, 1e-6)), np.log(max(damping, 1e-6)) + 2.0
        while self.effect(step := self._minimize(np.exp(high) * information)) > farthest:
            low, high = high, high + 2.0
        for _ in range(_BISECTIONS):
            if high - low < 0.1:
                break
            middle = (low + high) / 2
            tried = self._minimize(np.exp(middle) * information)
            if self.effect(tried) > farthest:
                low = middle
            else:
                high, step = middle, tried
        return step

    def moved(self, step: Array, student: Array, sizes: Array) -> Linear:
        """Return the model around `at` + step, where the student's log-probabilities are known.

        The slopes are corrected by what was seen, in the direction of the step alone (Broyden, 1965).

        Args:
            step: float64 [n].
            student: float64 [T, k], as they are there.
            sizes: float64 [n], what counts as one unit of each value.
        """
        along = step / sizes**2
        length = float(along @ step)
        slopes = self.slopes
        if length > 0:
            missed = student - self.student - self.slopes @ step
            slopes = slopes + missed[..., None] * (along / length)
        return Linear(self.at + step, self.teacher, student, slopes, self.prior)

    def _minimize(self, damping: Array) -> Array:
        """Newton's method with halved steps; the function is convex."""
        step = np.zeros(len(self.at))
        value, chances = self._value(step, damping)
        for _ in range(_ITERATIONS):
            gradient, hessian = self._derivatives(step, chances, damping)
            try:
                ahead = -np.linalg.solve(hessian, gradient)
            except np.linalg.LinAlgError:
                break
            size = 1.0
            while (tried := self._value(step + size * ahead, damping))[0] >= value and size > 1e-4:
                size /= 2
            if not tried[0] < value:
                break
            gain = value - tried[0]
            step, (value, chances) = step + size * ahead, tried
            if gain < _ENOUGH:
                break
        return step

    def _value(self, step: Array, damping: Array) -> tuple[float, Array]:
        """Return what is minimized, and the student's log-probabilities after the step."""
        chances = self.student + self.slopes @ step
        chances = chances - chances.max(axis=1, keepdims=True)
        chances = chances - np.log(np.exp(chances).sum(axis=1, keepdims=True))
        value = float((np.exp(self.teacher) * (self.teacher - chances)).sum(axis=1).mean())
        value += float(step @ damping @ step) / 2
        if self.prior is not None:
            away = self.at + step - self.prior.mean
            value += float(away @ self.prior.precision @ away) / (2 * len(self.teacher))
        return (value if np.isfinite(value) else np.inf), chances

    def _derivatives(self, step: Array, chances: Array, damping: Array) -> tuple[Array, Array]:
        places = len(self.teacher)
        # The student's slopes have mean 0 under the student, so that its share takes nothing away from the
        # gradient, but much of the noise that finite differences have.
        gap = np.exp(self.teacher) - np.exp(chances)
        gradient = -np.tensordot(gap, self.slopes, axes=2) / places + damping @ step
        hessian = _information(chances, self.slopes) + damping
        if self.prior is not None:
            gradient = gradient + self.prior.precision @ (self.at + step - self.prior.mean) / places
            hessian = hessian + self.prior.precision / places
        n = len(hessian)
        return gradient, hessian + (1e-9 * float(np.trace(hessian)) / n + 1e-12) * np.eye(n)


def _information(student: Array, slopes: NDArray[np.floating]) -> Array:
    """Return the covariance of the slopes under the student, mean over places: float64 [n, n]."""
    chances = np.exp(student)
    centred = slopes - (chances[..., None] * slopes).sum(axis=1, keepdims=True)
    weighted = (centred * np.sqrt(chances)[..., None]).reshape(-1, slopes.shape[-1])
    result: Array = weighted.T.astype(np.float64) @ weighted / len(student)
    return result
