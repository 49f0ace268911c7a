"""The search: covariance matrix adaptation in a few dimensions, by asking and telling. Knows no engine.

    search = Search(start, sigma=0.02, seed=0)
    for _ in range(steps):
        candidates = search.ask()                  # float64 [population, n]
        search.tell([reward(v) for v in candidates])
    search.mean                                    # what the search believes in now

Rewards are to be raised. They are noisy, so the best candidate of a step is mostly luck: the answer is the
mean. Judge all candidates of a step on the same prompts with the same random numbers (common random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_MOST_GROWTH = 0.3  # of log sigma, in one step
_ROUNDS = 4  # sigmas that are tried at most, to find one with an effect
_NEAR = 0.1  # of log sigma: how well a few tokens tell it
_FARTHEST = 4.0  # factor between two sigmas that are tried: far away the effect says little about here


class Search:
    """The (mu/mu_w, lambda)-CMA-ES of Hansen's tutorial, arXiv 1604.00772.

    Random numbers derive from (seed, step), and `state` is plain numbers and lists, fit for JSON: a restored
    search asks for exactly what the first one would have.

    Args:
        start: float64 [n], where to begin.
        sigma: standard deviation of a candidate's entries around the mean, above 0.
        seed: of the candidates.
        population: lambda, at least 4. Hansen's default is 4 + 3 ln n, 11 for n = 13; here answers cost more
            than steps.

    Attributes:
        mean: float64 [n], what the search believes in now.
        sigma: as it is now.
        step: how many times it was told.

    Raises:
        ValueError: an argument is not valid.
    """

    def __init__(self, start: ArrayLike, sigma: float, seed: int, *, population: int = 8) -> None:
        self.mean: Array = np.array(start, np.float64).reshape(-1)
        if not self.mean.size or not np.isfinite(self.mean).all():
            raise ValueError(f"the start is {self.mean}, expected finite numbers, at least one")
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma is {sigma}, expected a number above 0")
        if population < 4:
            raise ValueError(f"population is {population}, expected at least 4")
        self.sigma, self.seed, self.population = float(sigma), int(seed), population
        self.step = self.updates = 0
        self.covariance = np.eye(self.mean.size)
        self.path_sigma, self.path_c = np.zeros(self.mean.size), np.zeros(self.mean.size)

    def ask(self) -> Array:
        """Return draws from N(mean, sigma^2 C), float64 [population, n]: the same ones until told."""
        scales, axes = self._axes()
        draws = np.random.default_rng((self.seed, self.step)).standard_normal(
            (self.population, self.mean.size)
        )
        return self.mean + self.sigma * (draws * scales) @ axes.T

    def tell(self, rewards: ArrayLike) -> None:
        """Take the rewards, [population] or [population, trials], of what `ask` returned.

        Equal rewards move nothing.

        Raises:
            ValueError: they are not as many as the candidates, or not finite.
        """
        given = np.asarray(rewards, np.float64)
        if given.ndim not in (1, 2) or len(given) != self.population:
            raise ValueError(f"there are {self.population} candidates, but rewards of shape {given.shape}")
        if not np.isfinite(given).all():
            raise ValueError("rewards must be finite numbers")
        means = given.reshape(len(given), -1).mean(axis=1)
        if np.ptp(means):
            self._learn(self.ask(), means)
        self.step += 1

    def jump(self, mean: ArrayLike, sigma: float) -> None:
        """Go on from another mean, such as the best so far, and forget where the search was heading."""
        self.mean = np.array(mean, np.float64).reshape(self.mean.size)
        self.sigma = float(sigma)
        self.path_sigma, self.path_c, self.updates = np.zeros(self.mean.size), np.zeros(self.mean.size), 0

    def state(self) -> dict[str, Any]:
        """Return all that the search is, as numbers and lists."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}

    @classmethod
    def restored(cls, state: dict[str, Any], size: int) -> Self:
        """Return the search of `size` dimensions that `state` describes; ValueError where it is none."""
        found = cls(np.zeros(size), 1.0, 0)
        if state.keys() != vars(found).keys():
            raise ValueError(f"a search is {sorted(vars(found))}, not {sorted(state)}")
        for key, before in vars(found).items():
            value = state[key]
            try:
                number = np.array(value, np.float64)
            except (TypeError, ValueError, OverflowError):
                number = np.array(math.nan)
            whole = not isinstance(before, int) or type(value) is int
            if number.shape != np.shape(before) or not np.isfinite(number).all() or not whole:
                raise ValueError(f"{key} of a search is {value!r:.60}")
            setattr(found, key, number if isinstance(before, np.ndarray) else value)
        return found

    def _axes(self) -> tuple[Array, Array]:
        values, axes = np.linalg.eigh(self.covariance)
        return np.sqrt(np.maximum(values, 1e-20)), axes

    def _learn(self, candidates: Array, rewards: Array) -> None:
        n, ranked = self.mean.size, _ranked_weights(self.population)
        weights, effective = _tied(rewards, ranked), 1 / float((ranked**2).sum())
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
        length = float(np.linalg.norm(self.path_sigma))
        expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))  # length of N(0, I)
        discount = math.sqrt(1 - (1 - c_sigma) ** (2 * self.updates))
        steady = length / discount < (1.4 + 2 / (n + 1)) * expected
        c_c = (4 + effective / n) / (n + 4 + 2 * effective / n)
        self.path_c = (1 - c_c) * self.path_c
        self.path_c += steady * math.sqrt(c_c * (2 - c_c) * effective) * mean_y
        c_1 = 2 / ((n + 1.3) ** 2 + effective)
        c_mu = min(1 - c_1, 2 * (effective - 2 + 1 / effective) / ((n + 2) ** 2 + effective))
        kept = 1 - c_1 - c_mu + (1 - steady) * c_1 * c_c * (2 - c_c)
        self.covariance = (
            kept * self.covariance + c_1 * np.outer(self.path_c, self.path_c) + c_mu * (y.T * weights) @ y
        )
        self.sigma *= math.exp(min(c_sigma / damping * (length / expected - 1), _MOST_GROWTH))


def _ranked_weights(population: int) -> Array:
    """Of the better half, from the best on; the others have 0."""
    raw = np.log((population + 1) / 2) - np.log(np.arange(1, population + 1))
    positive = np.maximum(raw, 0.0)
    weights: Array = positive / positive.sum()
    return weights


def _tied(rewards: Array, weights: Array) -> Array:
    """Give the weights to the rewards, highest first; equal rewards share theirs."""
    found = np.empty_like(weights)
    found[np.argsort(-rewards, kind="stable")] = weights
    for value in np.unique(rewards):
        same = rewards == value
        found[same] = found[same].mean()
    return found


def change(here: NDArray[np.float32], there: Sequence[NDArray[np.float32]]) -> float:
    """Return how much vectors change log-probabilities of tokens, root mean square, in nats.

    NaN where there are no tokens, or `here` is not finite; infinity where a vector is too large.
    """
    if not here.size or not np.isfinite(here).all():
        return math.nan
    found = np.sqrt(np.mean([(each.astype(np.float64) - here) ** 2 for each in there]))
    return float(found) if np.isfinite(found) else math.inf


def sigma_of(effect: float, first: float, measure: Callable[[float], float]) -> float:
    """Return the sigma whose perturbations have an effect in nats; `first` where that cannot be told (NaN).

    It is approached from sigmas near it and not extrapolated from a tiny one: quantized activations change
    log-probabilities by up to some tenths of a nat whatever sigma is.
    """
    sigma = first
    for _ in range(_ROUNDS):
        found = measure(sigma)
        if math.isnan(found):
            return first
        factor = min(max(effect / max(found, 1e-12), 1 / _FARTHEST), _FARTHEST)
        sigma *= factor
        if abs(math.log(factor)) <= _NEAR:
            break
    return sigma
