"""Bounds of comparisons in float32, measured in the run itself: each processor has kernels of its own.

What is compared has no float16 in it: keys and values are F32, without flash attention, which rounds them to
float16. Two numbers that are 1e-7 apart are 1e-3 apart behind that, or not at all, and no bound follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinylora_edge import MicroVector
from tinylora_edge.runtime.engine import Part, Weights

FACTOR = 16
"""Times noise is a bound: engines differ by more than two orders of one of them, by 3 times where it was
looked at, and another text or vector than the measured one may round more."""


def bound(*orders: Any) -> float:
    """Return how far apart numbers may be that are the same but for rounding.

    Args:
        orders: the same numbers, added in two orders or more. Where a processor's kernels have one order,
            the rounding of the largest one counts.

    AssertionError: they are more than a float16's rounding apart: an error, or experts that a router chooses
    by the last bit. Compare where it does not.
    """
    found = np.stack([np.asarray(each, np.float64) for each in orders])
    largest, noise = np.abs(found).max(), np.ptp(found, axis=0).max()
    assert noise <= 2**-11 * largest, f"{noise} of {largest} is not the rounding of float32"
    return float(FACTOR * max(noise, np.finfo(np.float32).eps * largest))


def of(model: Weights, tokens: list[int], vectors: Sequence[MicroVector | None] = (None,)) -> float:
    """Return `bound` of logits under any of these vectors: of tokens in one piece, and one by one."""
    engine, found = model.engine(rows=1, n_ctx=len(tokens), n_threads=1), []
    for vector in vectors:
        engine.cut(0, 0)
        engine.set_r(0, None if vector is None else model.own(vector).r)
        whole = engine.evaluate([Part(0, tokens, len(tokens))]).copy()
        engine.cut(0, 0)
        single = [engine.evaluate([Part(0, [token])]).copy() for token in tokens]
        found.append(bound(whole, np.concatenate(single)))
    engine.close()
    return max(found)
