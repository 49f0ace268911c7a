"""The effect of a perturbation of v, in nats, and the sigma that has a given one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
"""Sigmas that are tried at most."""

_NEAR = 0.1  # of log sigma: how well a few tokens tell it
_FARTHEST = 4.0  # factor between two sigmas that are tried: far away the effect says little about here


def change(here: NDArray[np.float32], there: Sequence[NDArray[np.float32]]) -> float:
    """Return how much vectors change log-probabilities, root mean square over vectors and tokens, in nats.

    Args:
        here: float32 [tokens], of tokens that were drawn with the vector at the centre.
        there: of each vector around it, of the same tokens.

    Returns:
        NaN where there are no tokens, or their log-probabilities are not finite; infinity where a vector's
        are not: it is too large for the model.
    """
    if not here.size or not np.isfinite(here).all():
        return math.nan
    found = np.sqrt(np.mean([(each.astype(np.float64) - here) ** 2 for each in there]))
    return float(found) if np.isfinite(found) else math.inf


def sigma_of(effect: float, first: float, measure: Callable[[float], float]) -> float:
    """Return the sigma whose perturbations have an effect.

    It is approached from sigmas near it and not extrapolated from a tiny one: quantized activations change
    log-probabilities by up to some tenths of a nat whatever sigma is.

    Args:
        effect: in nats.
        first: the sigma to try first.
        measure: gives the effect of a sigma; NaN where it cannot be told.

    Returns:
        The sigma; `first` where its effect cannot be told.
    """
    sigma = first
    for _ in range(ROUNDS):
        found = measure(sigma)
        if math.isnan(found):
            return first
        factor = min(max(effect / max(found, 1e-12), 1 / _FARTHEST), _FARTHEST)
        sigma *= factor
        if abs(math.log(factor)) <= _NEAR:
            break
    return sigma
