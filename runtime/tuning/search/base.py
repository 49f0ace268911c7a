"""The search as an interface, and what several searches use."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]

MOST_GROWTH = 0.3
"""Of log sigma, in one step."""


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

    def rescale(self, sigma: float) -> None:
        """Begin with another sigma; before the first step."""
        self.sigma = float(sigma)

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
        if state.keys() != vars(self).keys():
            raise ValueError(f"a search is {sorted(vars(self))}, not {sorted(state)}")
        for key, value in state.items():
            before, now = vars(self)[key], np.array(value, np.float64) if isinstance(value, list) else value
            if isinstance(before, np.ndarray):
                fits = isinstance(now, np.ndarray) and now.ndim == before.ndim and np.isfinite(now).all()
            else:
                fits = type(now) is type(before) or (_is_number(now) and _is_number(before))
            if not fits:
                raise ValueError(f"{key} of a search is {value!r:.60}")
            setattr(self, key, now)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def expected_length(n: int) -> float:
    """Of N(0, I) in n dimensions."""
    return math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
