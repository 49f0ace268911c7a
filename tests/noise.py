"""Bounds of comparisons in float32: measured in the run itself, as each processor has kernels of its own.

What is compared has no float16 in it: keys and values are F32, without flash attention, which rounds them to
float16. Two numbers that are 1e-7 apart are 1e-3 apart behind that, or not at all, and no bound follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FACTOR = 16
"""What a bound is a multiple of noise for: the ways of engines differ more than two orders of one engine do,
and what is compared may be another text than what is measured. Where it was looked at, 3 would do."""


def bound(*orders: Any) -> float:
    """Return how far apart results may be that are the same but for rounding.

    Args:
        orders: the same numbers, added by one engine in two orders or more. Where its kernels have one order,
            rounding of the largest one counts.
    """
    found = np.stack(orders).astype(np.float64)
    assert np.isfinite(found).all()
    return float(FACTOR * max(np.ptp(found, axis=0).max(), np.finfo(np.float32).eps * np.abs(found).max()))


def of_llama(llm: Any, tokens: list[int]) -> float:
    """Return `bound` of the logits of a text, evaluated in one piece and token by token, under the vector
    that is in force. Experts that are chosen by the last bit are in it.
    """
    found: list[NDArray[np.float32]] = []
    for size in (len(tokens), 1):
        llm.reset()
        for start in range(0, len(tokens), size):
            llm.eval(tokens[start : start + size])
        found.append(llm.scores[: len(tokens)].copy())
    return bound(*found)
