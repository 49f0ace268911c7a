"""The search: CMA-ES in a few dimensions, by asking and telling. It knows no engine.

    search = Search(start, sigma=0.02, seed=0)
    for _ in range(steps):
        candidates = search.ask()                  # float64 [population, n]
        search.tell([reward(v) for v in candidates])
    search.mean                                    # its estimate of the best v

Higher rewards are better. They are noisy, so the best candidate of a step is mostly luck: the answer is the
mean. Judge all candidates of a step on the same prompts with the same random numbers (common random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinylora_edge.errors import MissingExtraError

Array = NDArray[np.float64]

_LARGEST = 1e32  # entries of a mean are below this, as cmaes demands
_ROUNDS = 4  # most sigmas that are tried to find one with the effect
_NEAR = 0.1  # error of log sigma at which a sigma is good enough: a few tokens tell it no better
_FARTHEST = 4.0  # largest factor between two sigmas that are tried: effects are not linear far away


class Search:
    """CMA-ES of the package `cmaes`, with active updates (Hansen's tutorial, arXiv 1604.00772).

    Its state is where it began and the rewards since: a search that begins there with the same seed and is
    told the same rewards ends in the same place.

    Args:
        start: float64 [n].
        sigma: standard deviation of a candidate's entries around the start, above 0.
        population: candidates a step, lambda. Hansen's default is 4 + 3 ln n, 11 for n = 13; fewer do here,
            since answers cost more than steps.
        first: how many steps earlier searches took.

    ValueError: an argument is not valid. MissingExtraError: cmaes is not installed.
    """

    def __init__(
        self, start: ArrayLike, sigma: float, seed: int, *, population: int = 8, first: int = 0
    ) -> None:
        try:
            from cmaes import CMA
        except ModuleNotFoundError:
            raise MissingExtraError("tuning", "cmaes", "tune") from None
        self.start: Array = np.array(start, np.float64).reshape(-1)
        if not self.start.size or not (np.abs(self.start) < _LARGEST).all():
            raise ValueError(f"the start is {self.start}, expected numbers below {_LARGEST}, at least one")
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma is {sigma}, expected a number above 0")
        self.sigma, self.seed, self.population, self.first = float(sigma), int(seed), population, first
        self.rewards: list[list[float]] = []
        (own,) = np.random.SeedSequence((self.seed, first)).generate_state(1)
        self._cma = CMA(self.start, self.sigma, seed=int(own), population_size=population)
        self._candidates: Array | None = None

    @property
    def mean(self) -> Array:
        """The estimate of the best v so far: float64 [n]."""
        return np.array(self._cma.mean)

    @property
    def step(self) -> int:
        """How many steps there were, with those of earlier searches."""
        return self.first + len(self.rewards)

    def ask(self) -> Array:
        """Return candidates, float64 [population, n]: the same ones until `tell`."""
        if self._candidates is None:
            self._candidates = np.array([self._cma.ask() for _ in range(self.population)])
        return self._candidates

    def tell(self, rewards: ArrayLike) -> None:
        """Take the rewards, [population] or [population, trials], of what `ask` returned; equal ones move
        nothing. ValueError: there is not one a candidate, or one is not finite."""
        array = np.asarray(rewards, np.float64)
        if array.ndim not in (1, 2) or len(array) != self.population:
            raise ValueError(f"there are {self.population} candidates, but rewards of shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError("rewards must be finite numbers")
        means = array.reshape(len(array), -1).mean(axis=1)
        candidates, self._candidates = self.ask(), None
        if np.ptp(means):
            self._cma.tell(list(zip(candidates, (-means).tolist(), strict=True)))
        self.rewards.append(means.tolist())

    def anew(self, start: ArrayLike, sigma: float) -> Search:
        """Return a search that goes on from another mean, such as the best so far, or with another sigma."""
        return Search(start, sigma, self.seed, population=self.population, first=self.step)

    def state(self) -> dict[str, Any]:
        """Return where it began, and the rewards since: numbers and lists, fit for JSON."""
        began = {"start": self.start.tolist(), "sigma": self.sigma, "first": self.first}
        return {**began, "rewards": self.rewards}

    @classmethod
    def restored(cls, state: dict[str, Any], size: int, seed: int, population: int) -> Self:
        """Return the search of `size` dimensions that `state` describes; ValueError where it is not valid."""
        try:
            found = cls(state["start"], state["sigma"], seed, population=population, first=state["first"])
            for rewards in state["rewards"]:
                found.tell(rewards)
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"a search is a start, sigma, first and rewards: {error!r}") from None
        if found.start.size != size:
            raise ValueError(f"the search has {found.start.size} dimensions, expected {size}")
        return found


def change(here: NDArray[np.float32], there: Sequence[NDArray[np.float32]]) -> float:
    """Return how much vectors change log-probabilities of tokens, root mean square, in nats.

    NaN where there are no tokens.
    """
    if not here.size:
        return math.nan
    return float(np.sqrt(np.mean([(each.astype(np.float64) - here) ** 2 for each in there])))


def sigma_of(effect: float, first: float, measure: Callable[[float], float]) -> float:
    """Return the sigma whose perturbations have an effect in nats; `first` where it cannot be measured (NaN).

    It is found in steps, not extrapolated from a tiny sigma: quantized activations change log-probabilities
    by up to some tenths of a nat whatever sigma is.
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
