"""The choice of the next token, and how likely tokens are, for batches, pools and completions."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.errors import VectorError

from .schema import Grammar

_BLOCK = 512
"""Tokens whose weights are summed at once: a cumulative sum of all tokens takes 20 times as long."""

_LIKELY = 1024
"""Tokens that are sorted first for top_p and min_p: almost always they are enough."""


def draw(logits: NDArray[np.float32], temperature: float, uniform: float) -> tuple[int, float]:
    """Draw a token from logits, float32 [vocabulary], by the inverse of their cumulative distribution.

    `uniform`, from 0 to 1, decides; at temperature 0 it is the most likely token. Returns the token, and its
    log-probability under softmax(logits / temperature), at temperature 0 under softmax(logits).
    VectorError: the logits are not finite.
    """
    highest = logits.max()
    if not np.isfinite(highest):
        raise too_large()
    inverse = np.float32(min(1 / temperature, 1e30) if temperature else 1)
    weights = np.subtract(logits, highest)
    with np.errstate(over="ignore"):  # a temperature near 0
        weights *= inverse
    np.exp(weights, out=weights)
    if temperature:
        blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64).cumsum()
        total = blocks[-1]
        block = _beyond(blocks, uniform * total)
        inside = weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
        token = block * _BLOCK + _beyond(inside, uniform * total - (blocks[block - 1] if block else 0))
    else:
        token, total = int(logits.argmax()), weights.sum(dtype=np.float64)
    chosen = (logits[token] - highest) * inverse
    return token, float(np.float32(chosen - np.log(total)))


def _beyond(cumulative: NDArray[np.float64], place: float) -> int:
    """Return where a cumulative sum first passes a place. Where rounding puts the place at the end of the
    sum, that is the last item that adds to it."""
    return int(np.searchsorted(cumulative, min(place, np.nextafter(cumulative[-1], 0)), side="right"))


def logprobs(
    logits: NDArray[np.float32], tokens: NDArray[np.int32], temperature: float = 1.0
) -> NDArray[np.float32]:
    """Return the log-probabilities of tokens, int32 [rows] or [rows, k], under softmax(logits / temperature).

    The logits are float32 [rows, vocabulary], and what is returned is float32, in the shape of the tokens.
    VectorError: the temperature is not above 0, or the logits are not finite.
    """
    if not temperature > 0:
        raise VectorError(f"completions are scored at a temperature above 0, not at {temperature}")
    highest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        raise too_large()
    shifted = logits - highest
    shifted *= np.float32(1 / temperature)
    chosen = np.take_along_axis(shifted, tokens.reshape(len(tokens), -1), axis=1).astype(np.float64)
    total = np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    result: NDArray[np.float32] = (chosen - np.log(total)).astype(np.float32)
    return result.reshape(tokens.shape)


def likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """Return the likeliest tokens of each row, likeliest first: int32 [rows, min(count, vocabulary)]."""
    count = min(count, logits.shape[1])
    if not count:
        return np.empty((len(logits), 0), np.int32)
    found = np.sort(np.argpartition(-logits, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(logits, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1).astype(np.int32)


@dataclass
class Sampler:
    """The draws of one answer. Options apply in the order of llama.cpp, and the temperature comes last.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_p: keep the likeliest whose probabilities sum to p.
        top_k: keep the k likeliest; 0 or less keeps all.
        min_p: keep those with at least this fraction of the likeliest one's probability.
        seed: of the draws; None draws differently each time.
        number: which of the answers with this seed it is: each draws differently.
    """

    temperature: float
    _: KW_ONLY
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    number: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(None if self.seed is None else [self.seed, self.number])

    def __call__(self, logits: NDArray[np.float32], grammar: Grammar | None = None) -> int:
        """Return the next token of logits, float32 [vocabulary].

        With a grammar, a token is first drawn from all, and again among the allowed ones if it is not one of
        them. That is faster than masking all logits first and, without top_k, top_p and min_p, draws alike.
        VectorError: the logits are not finite. RequestError: the grammar allows no token.
        """
        if not np.isfinite(logits.max()):
            raise too_large()
        token = self._draw(logits)
        if grammar is None or grammar.allows(token):
            return token
        return self._draw(grammar.masked(logits))

    def _draw(self, logits: NDArray[np.float32]) -> int:
        if self.temperature <= 0:
            return int(logits.argmax())
        uniform = self._random.random()
        if self.top_k <= 0 and self.top_p >= 1 and self.min_p <= 0:
            return draw(logits, self.temperature, uniform)[0]
        kept = self._kept(logits)
        return int(kept[draw(logits[kept], self.temperature, uniform)[0]])

    def _kept(self, logits: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the tokens that are drawn from, likeliest first."""
        weights = np.exp((logits - logits.max()).astype(np.float64))
        for most in [self.top_k] if self.top_k > 0 else [_LIKELY, len(logits)]:
            order = likeliest(logits[None], most)[0]
            chosen = weights[order]
            total = chosen.sum() if self.top_k > 0 else weights.sum()
            count = int((chosen >= self.min_p * chosen[0]).sum())
            if self.top_p < 1:
                count = min(count, int(np.searchsorted(chosen.cumsum(), self.top_p * total)) + 1)
            if count < len(order):
                break
        kept: NDArray[np.int32] = order[: max(1, count)]
        return kept


def too_large() -> VectorError:
    """Return the error of an answer whose logits are not finite."""
    return VectorError(
        "the vector is too large for the model: its logits are not finite. Use a smaller one; a "
        "policy bounds them (max_norm)"
    )
