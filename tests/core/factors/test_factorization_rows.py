"""truncated_svd on rows that a source makes when asked: in blocks, in order, within memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from matrices import ROUNDING, TOL, residual, weight_like

from tinylora_edge import BasisError, factorization
from tinylora_edge.factorization import RowSource, truncated_svd

BLOCK_BYTES = 2 << 20

pytestmark = pytest.mark.filterwarnings("error")


class Rows:
    def __init__(self, weight: np.ndarray) -> None:
        self._weight = weight
        self.shape = weight.shape
        self.asked: list[tuple[int, int]] = []

    def rows(self, start: int, stop: int) -> np.ndarray:
        self.asked.append((start, stop))
        return self._weight[start:stop].astype(np.float32)


def test_a_large_weight_is_streamed():
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

    blocks = len(source.asked) // svd.passes
    assert blocks == 20
    for start in range(0, len(source.asked), blocks):
        one_pass = source.asked[start : start + blocks]
        assert [begin for begin, _ in one_pass] == [0, *(end for _, end in one_pass[:-1])]
        assert one_pass[-1][1] == shape[0]
    assert len(source.asked) == blocks * svd.passes
    assert max(end - begin for begin, end in source.asked) * shape[1] * 4 <= BLOCK_BYTES
    assert peak < 28 << 20

    assert svd.converged
    assert residual(weight.astype(np.float32), svd) <= TOL + ROUNDING
    array = truncated_svd(weight, 2)
    for one, two in zip(svd, array, strict=True):
        assert one.tobytes() == two.tobytes(), "an array streams as a source does"


def test_a_weight_of_one_block_is_read_once():
    source = Rows(weight_like((300, 200)))
    truncated_svd(source, 2)
    assert source.asked == [(0, 300)]


class DearRows(Rows):
    dear = True

    def read_into(self, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        out[:] = self.rows(start, stop)
        return out


@pytest.mark.parametrize("kind", [Rows, DearRows])
@pytest.mark.parametrize("dear", [False, True])
def test_rows_that_are_dear_are_read_once_while_there_is_room(kind, dear, monkeypatch):
    weight = weight_like((1500, 2000))
    source = kind(weight)
    monkeypatch.setattr(kind, "dear", dear, raising=False)
    svd = truncated_svd(source, 2)
    reads = 1 if dear else svd.passes
    assert len(source.asked) == reads * -(-1500 // (BLOCK_BYTES // 8000))
    plain = truncated_svd(weight, 2)
    for one, two in zip(svd, plain, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_room_is_given_back_whatever_happens(monkeypatch):
    room = factorization._Room(4 * 1500 * 2000)
    monkeypatch.setattr(factorization, "_room", room)
    weight = weight_like((1500, 2000))
    truncated_svd(DearRows(weight), 2)
    weight[1400, 5] = np.nan
    with pytest.raises(BasisError, match="NaN"):
        truncated_svd(DearRows(weight), 2)
    assert room.take(4 * 1500 * 2000)
