"""truncated_svd on rows that a source makes when it is called: the same factors, and one float32 copy."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from matrices import ROUNDING, TOL, residual

from tinylora_edge.factorization import RowSource, truncated_svd

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


class Rows:
    def __init__(self, weight: np.ndarray) -> None:
        self._weight = weight
        self.shape = weight.shape
        self.reads = 0

    def rows(self, start: int, stop: int) -> np.ndarray:
        self.reads += 1
        return self._weight[start:stop].astype(np.float32)


def test_a_large_weight_is_read_once_and_held_once():
    rng = np.random.default_rng(0)
    shape = (2560, 4096)
    weight = (rng.standard_normal(shape, dtype=np.float32) * np.float32(0.01)).astype(np.float16)
    for strength in (3.0, 2.0, 1.0):
        left, right = (rng.standard_normal(n, dtype=np.float32) / np.float32(60) for n in shape)
        weight += (np.outer(left, right) * np.float32(strength)).astype(np.float16)
    source = Rows(weight)
    assert isinstance(source, RowSource)
    tracemalloc.start()
    svd = truncated_svd(source, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.reads == 1
    assert peak < 4 * weight.size + (12 << 20)
    assert svd.converged
    assert residual(weight.astype(np.float32), svd) <= TOL + ROUNDING
    for one, two in zip(svd, truncated_svd(weight, 2), strict=True):
        assert one.tobytes() == two.tobytes(), "an array is factorized as a source is"
