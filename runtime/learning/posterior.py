"""The posterior of v given clicks, a Gaussian that each click updates. It needs no engine and no file.

The user is assumed to prefer what a vector v* makes likelier, as in DPO (Rafailov et al., 2023):

    P(like y)          = sigmoid(beta * log pi_v*(y|x) / pi_0(y|x) + b)
    P(like y above y') = sigmoid(beta * (log pi_v*(y|x) / pi_0(y|x) - log pi_v*(y'|x) / pi_0(y'|x)))

with pi_0 the base and b how easily the user is pleased. At the vector v0 that drew an answer, forward passes
give its log-ratio l = log pi_v0(y|x) / pi_0(y|x) and its score s = d log pi_v(y|x) / dv. Then

    log pi_v*(y|x) / pi_0(y|x)  ~  l + s (v* - v0)

and a click is one observation of a logistic regression on the score, which has as many numbers as v. Each
becomes a Gaussian factor at its own mode (Laplace's method, in one dimension).

Where the basis has a prior N(m, C) of the vectors that people want, v* is one of them. Otherwise the prior is
a trust region: N(0, F^-1) up to a factor, F = E[s s'] the Fisher information, so that a vector is as unlikely
as the model's answers are far from the base's (1/2 v' F v is their KL divergence), in whatever units the
basis is. F is the mean over the answers seen so far; it needs no clicks of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.projection import Prior

Array = NDArray[np.float64]

BETA = 0.3
"""Log-odds of a like for each nat by which an answer became likelier: how much a click means."""

SPREAD = 0.25
"""Standard deviation, before any click, of the log-odds that one direction of v explains."""

FARTHEST = 1.0
"""KL divergence of answers from the base's, in nats, that the vector stays within."""

_PLEASED = 1.5  # standard deviation of b before any click
_ASSUMED = 4.0  # answers that an isotropic Fisher information counts as
_SUMS, _COUNTS = ("precision", "shift", "fisher"), ("answers", "clicks")  # of a record, beside the step


@dataclass
class Posterior:
    """The Gaussian posterior of the n values of v and of b: all that is known of a user by their clicks.

    Attributes:
        n: number of values.
        prior: of v, the basis's; None for the trust region.
        precision: float64 [n + 1, n + 1], what all clicks add to the prior's; b is last.
        shift: float64 [n + 1], precision times mean of the same.
        fisher: float64 [n, n], sum of s s' over the answers.
        answers: how many these are.
        clicks: how many there were.
        step: of the finite differences that give the next score, in units of v.
    """

    n: int
    prior: Prior | None = None
    precision: Array = field(init=False)
    shift: Array = field(init=False)
    fisher: Array = field(init=False)
    answers: int = 0
    clicks: int = 0
    step: float = 0.05

    def __post_init__(self) -> None:
        self.precision = np.zeros((self.n + 1, self.n + 1))
        self.shift = np.zeros(self.n + 1)
        self.fisher = np.zeros((self.n, self.n))

    def record(self) -> dict[str, Any]:
        """Return all but the prior, fit for JSON: the next time the prior may be another one."""
        sums = {name: getattr(self, name).reshape(-1).tolist() for name in _SUMS}
        return {**sums, "answers": self.answers, "clicks": self.clicks, "step": self.step}

    @classmethod
    def of(cls, record: dict[str, Any], n: int, prior: Prior | None) -> Self:
        """Return the posterior of a record; ValueError, KeyError or TypeError where it is not one."""
        made = cls(n, prior, step=record["step"], **{name: record[name] for name in _COUNTS})
        for name in _SUMS:
            own, numbers = getattr(made, name), np.array(record[name])
            if numbers.dtype.kind not in "fi":
                raise ValueError(f"its {name} is not a list of numbers")
            own[...] = numbers.reshape(own.shape)
        counted = all(type(record[name]) is int and record[name] >= 0 for name in _COUNTS)
        known = record.keys() == {*_SUMS, *_COUNTS, "step"}
        with np.errstate(all="ignore"):  # a LinAlgError is a ValueError
            found = (made.precision, made.shift, made.fisher, *made.solved(), made.vector())
        if not (counted and known and 0 < made.step < np.inf and all(np.isfinite(n).all() for n in found)):
            raise ValueError("it has numbers that clicks cannot produce")
        return made

    def information(self) -> Array:
        """Return F, float64 [n, n]: the mean of s s', with a little of the same in every direction."""
        mean = np.trace(self.fisher) / (self.n * max(1, self.answers))
        isotropic = (mean or 1.0) * _ASSUMED * np.eye(self.n)
        return (self.fisher + isotropic) / (self.answers + _ASSUMED)

    def solved(self) -> tuple[Array, Array]:
        """Return the mean, float64 [n + 1], and the covariance, float64 [n + 1, n + 1], of (v, b)."""
        precision, shift = self.precision.copy(), self.shift.copy()
        if self.prior is None:
            precision[: self.n, : self.n] += (BETA / SPREAD) ** 2 * self.information()
        else:
            precision[: self.n, : self.n] += self.prior.precision
            shift[: self.n] += self.prior.precision @ self.prior.mean
        precision[self.n, self.n] += 1 / _PLEASED**2
        covariance = np.asarray(np.linalg.inv(precision), np.float64)
        return covariance @ shift, covariance

    def vector(self) -> Array:
        """Return the mean of v, float64 [n], scaled down to where answers are `FARTHEST` from the base's.

        Before any answer nothing tells how far a vector goes, and it is the base: zeros.
        """
        if not self.answers:
            return np.zeros(self.n)
        mean = self.solved()[0][: self.n]
        far = float(mean @ self.information() @ mean) / 2
        return mean * min(1.0, float(np.sqrt(FARTHEST / far))) if far else mean

    def like(self, score: Array, ratio: float, at: Array, reward: int) -> None:
        """Take in that an answer was liked (1), or was not (-1): its score s, and log-ratio l at v0."""
        self._saw(score)
        direction = np.append(BETA * score, 1.0)
        self._observe(direction, BETA * (ratio - float(score @ at)), reward)

    def prefer(self, better: Array, worse: Array, ratios: tuple[float, float], at: Array) -> None:
        """Take in which of two answers, drawn with one vector, was preferred: their s, l and v0."""
        self._saw(better)
        self._saw(worse)
        difference = better - worse
        offset = ratios[0] - ratios[1] - float(difference @ at)
        self._observe(np.append(BETA * difference, 0.0), BETA * offset, 1)

    def _saw(self, score: Array) -> None:
        self.fisher = self.fisher + np.outer(score, score)
        self.answers += 1

    def _observe(self, direction: Array, offset: float, sign: int) -> None:
        """Multiply by the factor sigmoid(sign * (direction . (v, b) + offset)), as a Gaussian."""
        mean, covariance = self.solved()
        centre = float(direction @ mean) + offset
        variance = float(direction @ covariance @ direction)
        if not variance:
            return  # nothing that v changes
        z = _mode(centre, variance, sign)
        p = 1 / (1 + np.exp(-sign * z))
        weight, slope = p * (1 - p), sign * (1 - p)
        self.precision = self.precision + weight * np.outer(direction, direction)
        self.shift = self.shift + direction * (weight * (z - offset) + slope)


def _mode(centre: float, variance: float, sign: int) -> float:
    """Where exp(-(z - centre)^2 / (2 variance)) sigmoid(sign z) is highest: its slope falls, so bisect."""
    low, high = sorted((centre, centre + sign * variance))
    for _ in range(60):
        z = (low + high) / 2
        slope = sign / (1 + np.exp(np.clip(sign * z, -700, 700))) - (z - centre) / variance
        low, high = (z, high) if slope > 0 else (low, z)
    return (low + high) / 2
