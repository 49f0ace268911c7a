"""Search in a few dimensions by asking and telling: no gradient, no engine, numpy alone.

    search = make_search("es", start, sigma=0.02, seed=0)
    for _ in range(steps):
        candidates = search.ask()                  # float64 [population, n]
        search.tell([reward(v) for v in candidates])
    search.mean                                    # what the search believes in now

Rewards are to be raised. They are noisy, so the best candidate of a step is mostly luck; the answer is the
mean, not a candidate. Judge all candidates of a step on the same prompts with the same random numbers: what
is then compared is the candidates and not the luck of the draw (common random numbers).

Random numbers derive from (seed, step), and `state` is plain numbers and lists, fit for JSON: a restored
search asks for exactly what the first one would have.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]

_MOST_GROWTH = 0.3  # of log sigma, in one step
_NOISE = 0.2  # weight of the last step in the estimate of a trial's noise
_CAP = 1.0  # longest step of antithetic ES, in root mean square of sigma


class Search(ABC):
    """A search; make one with `make_search`.

    Args:
        start: float64 [n], where to begin.
        sigma: standard deviation of a candidate's entries around the mean; the unit of all steps.
        seed: of the candidates.

    Attributes:
        mean: float64 [n], what the search believes in now.
        sigma: as it is now.
        step: how many times it was told.
    """

    name: ClassVar[str]

    def __init__(self, start: ArrayLike, sigma: float, seed: int) -> None:
        self.mean: Vector = np.array(start, np.float64).reshape(-1)
        if not self.mean.size or not np.isfinite(self.mean).all():
            raise ValueError(f"the start is {self.mean}, expected finite numbers, at least one")
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma is {sigma}, expected a number above 0")
        self.sigma = float(sigma)
        self.seed = int(seed)
        self.step = 0

    @property
    def size(self) -> int:
        """Dimensions n."""
        return self.mean.size

    @abstractmethod
    def ask(self) -> Vector:
        """Return the candidates of this step: float64 [population, n]; the same ones until told."""

    @abstractmethod
    def _learn(self, candidates: Vector, rewards: Vector) -> None:
        """Move the mean by what the candidates got: [population, trials]."""

    def tell(self, rewards: ArrayLike) -> None:
        """Take the rewards of the candidates that `ask` returned.

        Args:
            rewards: float64 [population], or [population, trials] where every candidate was judged on the
                same trials. Rewards that are all equal say nothing, and move nothing.

        Raises:
            ValueError: they are not as many as the candidates, or not finite.
        """
        given = np.asarray(rewards, np.float64)
        candidates = self.ask()
        if given.ndim not in (1, 2) or len(given) != len(candidates):
            raise ValueError(f"there are {len(candidates)} candidates, but rewards of shape {given.shape}")
        if not np.isfinite(given).all():
            raise ValueError("rewards must be finite numbers")
        self._learn(candidates, given.reshape(len(given), -1))
        self.step += 1

    def jump(self, mean: ArrayLike, sigma: float | None = None) -> None:
        """Go on from another mean, such as the best so far, and forget where the search was heading."""
        self.mean = np.array(mean, np.float64).reshape(self.size)
        self.sigma = self.sigma if sigma is None else float(sigma)
        self._forget()

    @abstractmethod
    def _forget(self) -> None:
        """Forget the direction of the steps so far."""

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.step))

    def state(self) -> dict[str, Any]:
        """Return all that the search is, as numbers, lists and strings."""
        found = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return {"name": self.name, **found}

    def _restore(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, np.array(value, np.float64) if isinstance(value, list) else value)


class AntitheticES(Search):
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
        super().__init__(start, sigma, seed)
        if shape not in ("raw", "rank"):
            raise ValueError(f"shape is {shape!r}, expected 'raw' or 'rank'")
        self.pairs, self.shape, self.lr, self.momentum, self.adapt = pairs, shape, lr, momentum, adapt
        self.velocity = np.zeros(self.size)
        self.path = np.zeros(self.size)

    def ask(self) -> Vector:
        """Return mean + sigma e, mean - sigma e, for each direction in turn."""
        return _pairs(self.mean, self.sigma, _orthogonal(self._rng(), self.pairs, self.size))

    def _learn(self, candidates: Vector, rewards: Vector) -> None:
        rewards = rewards.mean(axis=1)
        shaped = _centered_ranks(rewards) if self.shape == "rank" else rewards
        gaps = shaped[0::2] - shaped[1::2]
        length = float(np.linalg.norm(gaps))
        if not length:
            return
        e = (candidates[0::2] - self.mean) / self.sigma
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


class KalmanES(Search):
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
        super().__init__(start, sigma, seed)
        self.pairs, self.lr, self.forget, self.prior = pairs, lr, forget, prior
        self.noise = 0.0  # variance of a trial's half difference
        self.slope = np.zeros(self.size)
        self.covariance = np.zeros((self.size, self.size))  # zero before the first pair that differs

    def ask(self) -> Vector:
        """Return mean + sigma e, mean - sigma e, for each direction in turn."""
        return _pairs(self.mean, self.sigma, _orthogonal(self._rng(), self.pairs, self.size))

    def _learn(self, candidates: Vector, rewards: Vector) -> None:
        halves = (rewards[0::2] - rewards[1::2]) / 2
        trials = halves.shape[1]
        slopes = halves.mean(axis=1)
        found = float(halves.var(axis=1, ddof=1).mean()) if trials > 1 else float((slopes**2).mean())
        self.noise = found if not self.noise else (1 - _NOISE) * self.noise + _NOISE * found
        if not self.noise:
            return  # no pair has differed yet
        e = (candidates[0::2] - self.mean) / self.sigma
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


class CMAES(Search):
    """Covariance matrix adaptation: the (mu/mu_w, lambda)-CMA-ES of Hansen's tutorial, arXiv 1604.00772.

    Args:
        start, sigma, seed: see `Search`.
        population: lambda; by default 4 + 3 ln n, rounded down.
        separable: adapt the diagonal alone (Ros and Hansen, PPSN 2008), which learns n / 3 times as fast.
    """

    name = "cma"

    def __init__(
        self,
        start: ArrayLike,
        sigma: float,
        seed: int,
        *,
        population: int | None = None,
        separable: bool = False,
    ) -> None:
        super().__init__(start, sigma, seed)
        self.population = population or 4 + int(3 * math.log(self.size))
        if self.population < 4:
            raise ValueError(f"population is {self.population}, expected at least 4")
        self.separable = separable
        self.covariance = np.eye(self.size)
        self.path_sigma, self.path_c = np.zeros(self.size), np.zeros(self.size)
        self.updates = 0

    def ask(self) -> Vector:
        """Return draws from N(mean, sigma^2 C)."""
        scales, axes = self._axes()
        draws = self._rng().standard_normal((self.population, self.size))
        return self.mean + self.sigma * (draws * scales) @ axes.T

    def _axes(self) -> tuple[Vector, Vector]:
        if self.separable:
            return np.sqrt(np.diag(self.covariance)), np.eye(self.size)
        values, axes = np.linalg.eigh(self.covariance)
        return np.sqrt(np.maximum(values, 1e-20)), axes

    def _learn(self, candidates: Vector, rewards: Vector) -> None:
        rewards = rewards.mean(axis=1)
        if np.ptp(rewards) == 0:
            return
        n, weights = self.size, _tied(rewards, _cma_weights(self.population))
        effective = 1 / float((_cma_weights(self.population) ** 2).sum())
        y = (candidates - self.mean) / self.sigma
        mean_y = weights @ y
        self.mean = self.mean + self.sigma * mean_y
        scales, axes = self._axes()
        white = axes @ ((axes.T @ mean_y) / scales)
        c_sigma = (effective + 2) / (n + effective + 5)
        damping = 1 + 2 * max(0.0, math.sqrt((effective - 1) / (n + 1)) - 1) + c_sigma
        self.path_sigma = (1 - c_sigma) * self.path_sigma
        self.path_sigma += math.sqrt(c_sigma * (2 - c_sigma) * effective) * white
        self.updates += 1
        length, expected = float(np.linalg.norm(self.path_sigma)), _expected_length(n)
        discount = math.sqrt(1 - (1 - c_sigma) ** (2 * self.updates))
        steady = length / discount < (1.4 + 2 / (n + 1)) * expected
        c_c = (4 + effective / n) / (n + 4 + 2 * effective / n)
        self.path_c = (1 - c_c) * self.path_c
        self.path_c += steady * math.sqrt(c_c * (2 - c_c) * effective) * mean_y
        c_1 = 2 / ((n + 1.3) ** 2 + effective)
        c_mu = min(1 - c_1, 2 * (effective - 2 + 1 / effective) / ((n + 2) ** 2 + effective))
        if self.separable:
            c_1, c_mu = (min(c * (n + 2) / 3, 0.4) for c in (c_1, c_mu))
        kept = 1 - c_1 - c_mu + (1 - steady) * c_1 * c_c * (2 - c_c)
        self.covariance = (
            kept * self.covariance + c_1 * np.outer(self.path_c, self.path_c) + c_mu * (y.T * weights) @ y
        )
        if self.separable:
            self.covariance = np.diag(np.diag(self.covariance))
        growth = c_sigma / damping * (length / expected - 1)
        self.sigma *= math.exp(min(growth, _MOST_GROWTH))

    def _forget(self) -> None:
        self.path_sigma, self.path_c, self.updates = np.zeros(self.size), np.zeros(self.size), 0


class SPSA(Search):
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
        super().__init__(start, sigma, seed)
        self.pairs, self.first, self.horizon = pairs, first, horizon
        self.gain = 0.0  # a; derived at the first step with signal
        self.begin = self.sigma

    def ask(self) -> Vector:
        """Return mean + c d, mean - c d, for each perturbation d in turn."""
        signs = self._rng().choice([-1.0, 1.0], (self.pairs, self.size))
        return _pairs(self.mean, self.sigma, signs)

    def _learn(self, candidates: Vector, rewards: Vector) -> None:
        signs = np.sign(candidates[0::2] - self.mean)
        rewards = rewards.mean(axis=1)
        gradient = (rewards[0::2] - rewards[1::2]) @ signs / (2 * self.sigma * self.pairs)
        size = float(np.abs(gradient).mean())
        if size and not self.gain:
            self.gain = self.first * self.sigma / size * (self.step + 1 + self.horizon) ** 0.602
        self.mean = self.mean + self.gain / (self.step + 1 + self.horizon) ** 0.602 * gradient
        self.sigma = self.begin / (self.step + 2) ** 0.101

    def _forget(self) -> None:
        """Nothing to forget: every step stands alone."""


METHODS: dict[str, type[Search]] = {method.name: method for method in (KalmanES, AntitheticES, CMAES, SPSA)}
"""Search methods by name."""


def make_search(method: str, start: ArrayLike, *, sigma: float, seed: int, **options: Any) -> Search:
    """Return a search.

    Args:
        method: one of `METHODS`.
        start: float64 [n].
        sigma: standard deviation of a candidate's entries around the mean.
        seed: of the candidates.
        options: of the method; see its class.

    Raises:
        ValueError: there is no such method, or an argument is not valid.
    """
    if method not in METHODS:
        raise ValueError(f"there is no search method {method!r}: choose one of {', '.join(METHODS)}")
    return METHODS[method](start, sigma, seed, **options)


def restore_search(state: dict[str, Any]) -> Search:
    """Return the search that `Search.state` described.

    Raises:
        ValueError: it describes none.
    """
    try:
        kind = METHODS[state["name"]]
        search = kind(state["mean"], state["sigma"], state["seed"])
        search._restore({k: v for k, v in state.items() if k != "name"})
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no state of a search: {error!r}") from None
    return search


def _pairs(mean: Vector, sigma: float, directions: Vector) -> Vector:
    """Return mean + sigma e, mean - sigma e, for each direction in turn."""
    return mean + sigma * np.stack([directions, -directions], axis=1).reshape(-1, mean.size)


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
    growth = rate / damping * (float(np.linalg.norm(path)) / _expected_length(n) - 1)
    return path, min(growth, _MOST_GROWTH)


def _expected_length(n: int) -> float:
    """Of N(0, I) in n dimensions."""
    return math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))


def _cma_weights(population: int) -> Vector:
    """Of the better half, from the best on; the others have 0."""
    raw = np.log((population + 1) / 2) - np.log(np.arange(1, population + 1))
    positive = np.maximum(raw, 0.0)
    weights: Vector = positive / positive.sum()
    return weights


def _tied(rewards: Sequence[float] | Vector, weights: Vector) -> Vector:
    """Give the weights to the rewards, highest first; equal rewards share theirs."""
    rewards = np.asarray(rewards)
    order = np.argsort(-rewards, kind="stable")
    found = np.empty_like(weights)
    found[order] = weights
    for value in np.unique(rewards):
        same = rewards == value
        found[same] = found[same].mean()
    return found
