"""Searches by antithetic pairs: mean + d and mean - d, compared on the same trials."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .base import MOST_GROWTH, Search, Vector, expected_length

_NOISE = 0.2  # weight of the last step in the estimate of a trial's noise
_CAP = 1.0  # longest step of antithetic ES, in root mean square of sigma


class Pairs(Search):
    """A search that judges mean + sigma e against mean - sigma e, for every direction e of a step.

    Args:
        start, sigma, seed: see `Search`.
        pairs: a step; the population is twice as many.
    """

    def __init__(self, start: ArrayLike, sigma: float, seed: int, pairs: int) -> None:
        super().__init__(start, sigma, seed)
        self.pairs = pairs

    def ask(self) -> Vector:
        """Return mean + sigma e, mean - sigma e, for each direction in turn."""
        directions = self._directions()
        return self.mean + self.sigma * np.stack([directions, -directions], axis=1).reshape(-1, self.size)

    def _directions(self) -> Vector:
        """Return those of this step: float64 [pairs, n], orthogonal where n allows, of length sqrt(n)."""
        return _orthogonal(self._rng(), self.pairs, self.size)

    def _asked(self, candidates: Vector) -> Vector:
        """Return the directions that the candidates were made of."""
        return (candidates[0::2] - self.mean) / self.sigma


class KalmanES(Pairs):
    """Antithetic pairs whose differences a Kalman filter turns into a gradient with error bars.

    Half the difference of a pair, per sigma, is the reward's slope along e, plus noise whose variance the
    trials tell. The filter keeps the mean m and the covariance P of the slopes along all axes: every pair
    corrects them by what it says and no more, and between steps P grows, since the slopes change as the mean
    moves. With 13 numbers and a few dozen pairs that uses each pair better than a moving average, whose
    directions also weigh what they happened not to look at. The step is lr * sigma * m / sqrt(m.m + tr P): as
    long as lr * sigma where the gradient is known, and shorter where it is not.

    Args:
        start, sigma, seed: see `Search`.
        pairs: a step; the population is twice as many.
        lr: length of a step whose direction is certain, in sigma.
        forget: share of P that a step gives back to the prior.
        prior: standard deviation of a slope before anything is known, over that of a trial's half difference.
    """

    name = "kalman"

    def __init__(
        self,
        start: ArrayLike,
        sigma: float,
        seed: int,
        *,
        pairs: int = 4,
        lr: float = 0.8,
        forget: float = 0.1,
        prior: float = 0.2,
    ) -> None:
        super().__init__(start, sigma, seed, pairs)
        self.lr, self.forget, self.prior = lr, forget, prior
        self.noise = 0.0  # variance of a trial's half difference
        self.slope = np.zeros(self.size)
        self.covariance = np.zeros((self.size, self.size))  # zero before the first pair that differs

    def _learn(self, candidates: Vector, rewards: Vector) -> None:
        halves = (rewards[0::2] - rewards[1::2]) / 2
        trials = halves.shape[1]
        slopes = halves.mean(axis=1)
        found = float(halves.var(axis=1, ddof=1).mean()) if trials > 1 else float((slopes**2).mean())
        self.noise = found if not self.noise else (1 - _NOISE) * self.noise + _NOISE * found
        if not self.noise:
            return  # no pair has differed yet
        e = self._asked(candidates)
        before = self.prior**2 * self.noise * np.eye(self.size)
        if not self.covariance.any():
            self.covariance = before
        p = (1 - self.forget) * self.covariance + self.forget * before
        gain = p @ e.T @ np.linalg.inv(e @ p @ e.T + self.noise / trials * np.eye(self.pairs))
        self.slope = self.slope + gain @ (slopes - e @ self.slope)
        p = p - gain @ e @ p
        self.covariance = (p + p.T) / 2
        length = math.sqrt(float(self.slope @ self.slope) + float(np.trace(self.covariance)))
        self.mean = self.mean + self.lr * self.sigma * self.slope / length

    def _forget(self) -> None:
        self.slope, self.covariance = np.zeros(self.size), np.zeros((self.size, self.size))


class AntitheticES(Pairs):
    """Evolution strategies with antithetic pairs: mean + sigma e and mean - sigma e.

    Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", arXiv
    1703.03864: the pair's difference weighs e. Directions e of a step are orthogonal where the dimensions
    allow, of length sqrt(n) (Choromanski et al., arXiv 1804.02395). Steps are scaled so that rewards of
    pure noise would give a step of N(0, sigma^2 / population) an entry, whatever the reward's unit; sigma
    grows while steps agree with each other and shrinks while they contradict (cumulative step-size
    adaptation, as in CMA-ES).

    Args:
        start, sigma, seed: see `Search`.
        pairs: a step; the population is twice as many.
        shape: `raw` weighs a pair by its difference, `rank` by the difference of its rewards' ranks.
        lr: step size over that of a (mu/mu, lambda) evolution strategy.
        momentum: of the steps.
        adapt: whether sigma adapts.
    """

    name = "es"

    def __init__(
        self,
        start: ArrayLike,
        sigma: float,
        seed: int,
        *,
        pairs: int = 4,
        shape: str = "raw",
        lr: float = 1.0,
        momentum: float = 0.6,
        adapt: bool = True,
    ) -> None:
        super().__init__(start, sigma, seed, pairs)
        if shape not in ("raw", "rank"):
            raise ValueError(f"shape is {shape!r}, expected 'raw' or 'rank'")
        self.shape, self.lr, self.momentum, self.adapt = shape, lr, momentum, adapt
        self.velocity = np.zeros(self.size)
        self.path = np.zeros(self.size)

    def _learn(self, candidates: Vector, rewards: Vector) -> None:
        rewards = rewards.mean(axis=1)
        shaped = _centered_ranks(rewards) if self.shape == "rank" else rewards
        gaps = shaped[0::2] - shaped[1::2]
        length = float(np.linalg.norm(gaps))
        if not length:
            return
        e = self._asked(candidates)
        direction = gaps @ e / length  # N(0, 1) an entry where the gaps are noise
        self.velocity = self.momentum * self.velocity + self.lr * direction / math.sqrt(2 * self.pairs)
        length = float(np.sqrt((self.velocity**2).mean()))
        self.velocity *= min(1.0, _CAP / max(length, 1e-300))
        self.mean = self.mean + self.sigma * self.velocity
        if self.adapt:
            self.path, growth = _cumulate(self.path, direction, self.pairs)
            self.sigma *= math.exp(growth)

    def _forget(self) -> None:
        self.velocity, self.path = np.zeros(self.size), np.zeros(self.size)


class SPSA(Pairs):
    """Simultaneous perturbation: signs of +-1, and gains that fall as Spall's guidelines say.

    Spall, "Implementation of the Simultaneous Perturbation Algorithm for Stochastic Optimization", IEEE
    Transactions on Aerospace and Electronic Systems 34 (1998). The perturbation is sigma / (k + 1)^0.101. The
    step size is a / (k + 1 + A)^0.602, with a such that the first step moves an entry by `first` * sigma on
    average.

    Args:
        start, sigma, seed: see `Search`.
        pairs: averaged at every step.
        first: see above.
        horizon: A, a tenth of the steps that are expected.
    """

    name = "spsa"

    def __init__(
        self,
        start: ArrayLike,
        sigma: float,
        seed: int,
        *,
        pairs: int = 4,
        first: float = 0.5,
        horizon: float = 5.0,
    ) -> None:
        super().__init__(start, sigma, seed, pairs)
        self.first, self.horizon = first, horizon
        self.gain = 0.0  # a; derived at the first step with signal
        self.begin = self.sigma

    def rescale(self, sigma: float) -> None:
        """Begin with another sigma; before the first step."""
        super().rescale(sigma)
        self.begin = self.sigma

    def _directions(self) -> Vector:
        return self._rng().choice([-1.0, 1.0], (self.pairs, self.size))

    def _learn(self, candidates: Vector, rewards: Vector) -> None:
        signs = np.sign(self._asked(candidates))
        rewards = rewards.mean(axis=1)
        gradient = (rewards[0::2] - rewards[1::2]) @ signs / (2 * self.sigma * self.pairs)
        size = float(np.abs(gradient).mean())
        if size and not self.gain:
            self.gain = self.first * self.sigma / size * (self.step + 1 + self.horizon) ** 0.602
        self.mean = self.mean + self.gain / (self.step + 1 + self.horizon) ** 0.602 * gradient
        self.sigma = self.begin / (self.step + 2) ** 0.101

    def _forget(self) -> None:
        """Nothing to forget: every step stands alone."""


def _orthogonal(rng: np.random.Generator, count: int, size: int) -> Vector:
    """Return directions float64 [count, size] of length sqrt(size), orthogonal in blocks of `size`."""
    blocks = [np.linalg.qr(rng.standard_normal((size, size)))[0].T for _ in range(-(-count // size))]
    return np.concatenate(blocks)[:count] * math.sqrt(size)


def _centered_ranks(values: Vector) -> Vector:
    """Return ranks from -0.5 to 0.5, equal values sharing theirs."""
    order = np.sort(values)
    low, high = np.searchsorted(order, values, "left"), np.searchsorted(order, values, "right")
    ranks: Vector = (low + high - 1) / 2 / max(len(values) - 1, 1) - 0.5
    return ranks


def _cumulate(path: Vector, direction: Vector, effective: float) -> tuple[Vector, float]:
    """Return the new evolution path, and by how much log sigma is to change."""
    n = path.size
    rate = (effective + 2) / (n + effective + 5)
    damping = 1 + 2 * max(0.0, math.sqrt((effective - 1) / (n + 1)) - 1) + rate
    path = (1 - rate) * path + math.sqrt(rate * (2 - rate)) * direction
    growth = rate / damping * (float(np.linalg.norm(path)) / expected_length(n) - 1)
    return path, min(growth, MOST_GROWTH)
