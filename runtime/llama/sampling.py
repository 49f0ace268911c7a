"""The next token of many sequences: draws, and exact log-probabilities of what was drawn or is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 256
"""Probabilities that are summed together first: half the memory traffic of a running sum over them all."""


def sample(
    logits: NDArray[np.float32], temperature: float, uniform: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw one token a row, by the inverse of the cumulative distribution.

    Args:
        logits: float32 [rows, vocabulary].
        temperature: 0 takes the most likely token.
        uniform: float64 [rows] in [0, 1), what decides; not looked at where the temperature is 0.

    Returns:
        Tokens int64 [rows], and their log-probabilities float32 [rows] under softmax(logits / temperature)
        (softmax(logits) at temperature 0). Where a row's logits are not finite, -1 and NaN.
    """
    rows, width = logits.shape
    highest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        return _sample_finite(logits, np.isfinite(highest[:, 0]), temperature, uniform)
    inverse = np.float32(1 / temperature if temperature else 1)
    weights = np.subtract(logits, highest)
    weights *= inverse
    np.exp(weights, out=weights)
    whole = width // _BLOCK * _BLOCK
    blocks = np.empty((rows, -(-width // _BLOCK)), np.float64)
    blocks[:, : whole // _BLOCK] = weights[:, :whole].reshape(rows, -1, _BLOCK).sum(axis=2)
    if whole < width:
        blocks[:, -1] = weights[:, whole:].sum(axis=1)
    cumulative = blocks.cumsum(axis=1)
    total = cumulative[:, -1]
    if temperature:
        tokens = np.array([_find(*row) for row in zip(weights, cumulative, uniform, strict=True)], np.int64)
    else:
        tokens = logits.argmax(axis=1)
    at = np.arange(rows)
    chosen = (logits[at, tokens] - highest[:, 0]) * inverse
    return tokens, (chosen - np.log(total)).astype(np.float32)


def logprobs(
    logits: NDArray[np.float32], temperature: float, tokens: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Return the log-probabilities of given tokens.

    Args:
        logits: float32 [rows, vocabulary].
        temperature: above 0.
        tokens: int32 [rows], one a row, or [rows, k].

    Returns:
        float32, as the tokens: under softmax(logits / temperature). NaN where a row's logits are not finite.
    """
    highest = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # infinity - infinity
        shifted = logits - highest
    shifted *= np.float32(1 / temperature)
    wanted = tokens.reshape(len(tokens), -1)
    chosen = np.take_along_axis(shifted, wanted, axis=1).astype(np.float64)
    total = np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    result: NDArray[np.float32] = (chosen - np.log(total)).astype(np.float32)
    return result.reshape(tokens.shape)


def likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """Return the likeliest tokens of each row, in no order: int32 [rows, min(count, vocabulary)]."""
    count = min(count, logits.shape[1])
    return np.argpartition(logits, -count, axis=1)[:, -count:].astype(np.int32)


def _sample_finite(
    logits: NDArray[np.float32], finite: NDArray[np.bool_], temperature: float, uniform: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw in the rows that are finite, as `sample`."""
    tokens, found = np.full(len(logits), -1, np.int64), np.full(len(logits), np.nan, np.float32)
    if finite.any():
        tokens[finite], found[finite] = sample(logits[finite], temperature, uniform[finite])
    return tokens, found


def _find(weights: NDArray[np.float32], cumulative: NDArray[np.float64], uniform: float) -> int:
    """The token whose share of the cumulative weights holds the uniform number; never one of weight 0."""
    block, below, share = _locate(cumulative, uniform)
    start = block * _BLOCK
    # float64, and as a share of the block: what rounding adds up to is never a token of its own
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    return start + _locate(inside, (uniform * cumulative[-1] - below) / share)[0]


def _locate(cumulative: NDArray[np.float64], uniform: float) -> tuple[int, float, float]:
    """Return an entry, what lies below it, and its own size."""
    total = cumulative[-1]
    entry = int(np.searchsorted(cumulative, min(max(uniform, 0.0), 1.0) * total, side="right"))
    entry = min(entry, int(np.searchsorted(cumulative, total, side="left")))  # the last that is not empty
    below = float(cumulative[entry - 1]) if entry else 0.0
    return entry, below, float(cumulative[entry]) - below
