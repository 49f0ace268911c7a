"""The (epsilon, delta) that the noise of an average is worth, by Google's `dp-accounting` (extra `private`).

The mechanism is the Gaussian one: a mean that one user moves by at most its sensitivity S, and noise of
standard deviation z S on every value, z being the noise multiplier. What z is worth does not depend on how
many values there are, nor on S. It is computed exactly (Balle and Wang, 2018, arXiv 1805.06530, theorem 8).
The same user in several rounds: k of them are as one with z / sqrt(k), exactly.
"""

from __future__ import annotations

import math
from typing import Any

from .errors import MissingExtraError, VectorError

__all__ = ["epsilon", "noise_multiplier"]


def epsilon(noise_multiplier: float, delta: float, *, rounds: int = 1) -> float:
    """Return the least epsilon for which averages with this noise are (epsilon, delta)-private.

    Args:
        noise_multiplier: z, above 0 and finite.
        delta: above 0 and below 1; usual is less than 1 over the number of users.
        rounds: averages in which the same user may take part, each with noise of its own.

    Raises:
        VectorError: a value out of its range.
        MissingExtraError: `dp-accounting` is not installed.
    """
    if not 0 < noise_multiplier < math.inf:
        raise VectorError(f"only noise is private: the noise multiplier is {noise_multiplier}, not above 0")
    _check(delta, rounds)
    return float(_accountant().get_epsilon_gaussian(noise_multiplier / math.sqrt(rounds), delta))


def noise_multiplier(epsilon: float, delta: float, *, rounds: int = 1) -> float:
    """Return the least noise multiplier with which averages are (epsilon, delta)-private.

    Arguments and errors are those of `epsilon`.
    """
    if not 0 < epsilon < math.inf:
        raise VectorError(f"epsilon is finite and above 0, not {epsilon}")
    _check(delta, rounds)
    return float(_accountant().get_sigma_gaussian(epsilon, delta)) * math.sqrt(rounds)


def _check(delta: float, rounds: int) -> None:
    if not 0 < delta < 1:
        raise VectorError(
            f"delta is above 0 and below 1, not {delta}: take less than 1 over the number of users"
        )
    if rounds < 1:
        raise VectorError(f"a user takes part in at least 1 round, not {rounds}")


def _accountant() -> Any:
    try:
        import dp_accounting
    except ModuleNotFoundError:
        raise MissingExtraError("privacy accounting", "dp-accounting", "private") from None
    return dp_accounting
