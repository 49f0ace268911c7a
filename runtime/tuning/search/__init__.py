"""Searches in a few dimensions by asking and telling: no gradient, no engine, numpy alone.

    search = make_search("cma", start, sigma=0.02, seed=0)
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

from typing import Any

from numpy.typing import ArrayLike

from .base import Search
from .cma import CMAES
from .pairs import SPSA, AntitheticES, KalmanES

__all__ = ["METHODS", "Search", "make_search", "restore_search"]

METHODS: dict[str, type[Search]] = {method.name: method for method in (CMAES, KalmanES, AntitheticES, SPSA)}
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


def restore_search(state: dict[str, Any], *, size: int | None = None) -> Search:
    """Return the search that `Search.state` described.

    Args:
        state: that it returned.
        size: dimensions that it must have; None for any.

    Raises:
        ValueError: it describes none, or one in other dimensions.
    """
    try:
        kind = METHODS[state["name"]]
        search = kind(state["mean"], state["sigma"], state["seed"])
        search._restore({k: v for k, v in state.items() if k != "name"})
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"this is no state of a search: {error!r}") from None
    if size is not None and search.size != size:
        raise ValueError(f"its search has {search.size} dimensions, expected {size}")
    return search
