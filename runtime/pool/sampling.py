"""The draw of the next token from a row of logits, for one request with numbers of its own."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .request import Sampling

_LIKELY = 1024
"""Tokens that are sorted first for top_p: almost always they have all of the share."""


class Constraint(Protocol):
    """What an answer keeps to, a grammar say."""

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""

    def masked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [vocabulary] with -infinity for all tokens that may not come next."""

    def accept(self, token: int) -> None:
        """Go on after a token, which is allowed and does not end the answer."""


class Sampler:
    """The draws of one answer.

    Args:
        sampling: how.
        choice: the number of the answer among those with the same seed.
    """

    def __init__(self, sampling: Sampling, choice: int = 0) -> None:
        self._sampling = sampling
        seed = sampling.seed
        self._random = np.random.default_rng(None if seed is None else [seed, choice])

    def draw(self, logits: NDArray[np.float32], constraint: Constraint | None = None) -> int | None:
        """Return the next token.

        Where the token that was drawn is not allowed, another one is drawn among those that are. That is the
        same distribution as to forbid the others first, and looks at all of them only where it must.

        Args:
            logits: float32 [vocabulary], finite.
            constraint: what the token keeps to.

        Returns:
            The token, or None where none is allowed.
        """
        token = self._one(logits)
        if constraint is None or constraint.allows(token):
            return token
        masked = constraint.masked(logits)
        return self._one(masked) if np.isfinite(masked.max()) else None

    def _one(self, logits: NDArray[np.float32]) -> int:
        if not self._sampling.temperature:
            return int(logits.argmax())
        weights = logits.astype(np.float64) - float(logits.max())
        with np.errstate(over="ignore"):  # a temperature near 0
            weights = np.exp(weights / self._sampling.temperature)
        if self._sampling.top_p >= 1:
            return _pick(weights, self._random.random())
        kept = _nucleus(weights, self._sampling.top_p)
        return int(kept[_pick(weights[kept], self._random.random())])


def logprobs(logits: NDArray[np.float32], token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Return log-probabilities (natural) under softmax(logits): of a token, and of the likeliest ones.

    Args:
        logits: float32 [vocabulary], finite.
        token: that is told in any case.
        count: of the likeliest tokens.
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    total = float(np.log(np.exp(shifted).sum()))
    count = min(count, len(logits))
    found = np.argpartition(logits, -count)[-count:] if count else np.empty(0, np.int64)
    found = found[np.argsort(-shifted[found], kind="stable")]
    return float(shifted[token]) - total, [(int(each), float(shifted[each]) - total) for each in found]


def _pick(weights: NDArray[np.float64], uniform: float) -> int:
    cumulative = weights.cumsum()
    found = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(found, int(np.searchsorted(cumulative, cumulative[-1])))  # the last that is not empty


def _nucleus(weights: NDArray[np.float64], share: float) -> NDArray[np.int64]:
    """Return the fewest of the heaviest that together have a share of the weight, heaviest first."""
    enough = share * weights.sum()
    for most in (min(_LIKELY, len(weights)), len(weights)):
        heaviest = np.argpartition(weights, -most)[-most:]
        heaviest = heaviest[np.argsort(-weights[heaviest], kind="stable")]
        cumulative = weights[heaviest].cumsum()
        if cumulative[-1] >= enough:
            return heaviest[: int(np.searchsorted(cumulative, enough)) + 1]
    return heaviest
