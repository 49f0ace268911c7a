"""The choice of a token from logits, and the text of tokens: what a completion needs besides the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import TinyLoraError
from ..stops import Stops


@dataclass(frozen=True)
class Sampling:
    """Options of how the next token is chosen; names, defaults and order are llama.cpp's.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest whose probabilities sum to p.
        min_p: keep those with at least this fraction of the likeliest one's probability.
        repeat_penalty: divides positive logits of the last 64 tokens, and multiplies negative ones.
        seed: seed of the draws; None draws differently each time.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    @classmethod
    def full(cls, temperature: float, seed: int | Sequence[int]) -> Sampling:
        """Return how to draw from the whole distribution; several numbers of a seed become one."""
        number = seed if isinstance(seed, int) else int(np.random.SeedSequence(seed).generate_state(1)[0])
        return cls(temperature, top_k=0, top_p=1.0, min_p=0.0, seed=number)


_PENALIZED = 64


class Sampler:
    """Sampler of the tokens of one sequence.

    Args:
        options: how it draws.
        row: number of the sequence; sequences of one seed draw differently by it.
    """

    def __init__(self, options: Sampling, row: int = 0) -> None:
        self._options = options
        self._rng = np.random.default_rng(None if options.seed is None else (options.seed, row))

    def __call__(self, logits: NDArray[np.float32], before: Sequence[int]) -> int:
        """Return the next token.

        Args:
            logits: float32 [vocabulary]; not changed.
            before: tokens of the sequence so far.

        Raises:
            TinyLoraError: the logits are not finite.
        """
        o = self._options
        if not np.isfinite(logits.max()):
            raise TinyLoraError(
                "the model's logits are not finite: the vector is too large for it. Swap to another one"
            )
        if o.repeat_penalty != 1.0 and before:
            logits = logits.copy()
            recent = np.unique(np.asarray(before[-_PENALIZED:]))
            seen = logits[recent]
            logits[recent] = np.where(seen > 0, seen / o.repeat_penalty, seen * o.repeat_penalty)
        if o.temperature <= 0:
            return int(logits.argmax())
        order = likeliest(logits, o.top_k)
        chances = _softmax(logits[order].astype(np.float64))
        kept = int(np.searchsorted(chances.cumsum(), o.top_p)) + 1 if o.top_p < 1 else len(order)
        kept = min(kept, max(1, int((chances >= o.min_p * chances[0]).sum())))
        chances = _softmax(logits[order[:kept]].astype(np.float64) / o.temperature)
        return int(order[self._rng.choice(min(kept, len(order)), p=chances)])


def logprobs(logits: NDArray[np.float32], tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return the log-probabilities of tokens under softmax(logits).

    Args:
        logits: float32 [vocabulary], finite.
        tokens: int32, of any shape; that of the result.
    """
    exact = logits.astype(np.float64)
    exact -= exact.max()
    found: NDArray[np.float32] = (exact[tokens] - np.log(np.exp(exact).sum())).astype(np.float32)
    return found


def whole(found: Sequence[Any], tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return what was read at each token, NaN where nothing was: float32, shaped as the tokens."""
    result = np.full(tokens.shape, np.nan, np.float32)
    if found:
        result[: len(found)] = np.array(found, np.float32)
    return result


def pairs(found: Sequence[Any], length: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the tokens and values that were read at each place: int32 and float32 [length, count].

    Values are NaN where nothing was read.
    """
    width = len(found[0][0]) if found else count
    tokens = np.zeros((length, width), np.int32)
    if found:
        tokens[: len(found)] = np.array([each for each, _ in found])
    return tokens, whole([values for _, values in found], tokens)


def likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the `count` likeliest tokens, or all where it is 0, in order."""
    if not 0 < count < logits.size:
        return np.argsort(-logits, kind="stable")
    found = np.argpartition(-logits, count - 1)[:count]  # sorting a whole vocabulary takes milliseconds
    return found[np.lexsort((found, -logits[found]))]


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(logits - logits.max())
    weights /= weights.sum()
    return weights


class Text:
    """The text of a completion as it comes in, up to the first of some stop strings.

    Args:
        decode: text that a token adds, which may be empty while a character is incomplete.
        stop: strings that end the text and are no part of it.
    """

    def __init__(self, decode: Callable[[int], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = Stops([text for text in stop if text])

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        return self._stops.stopped

    def add(self, token: int) -> str:
        """Return the text that is certain now; what may begin a stop string is held back."""
        return self._stops.add(self._decode(token))

    def rest(self) -> str:
        """Return what was held back, at the end."""
        return self._stops.rest()
