"""The cells of a batch's rows: memory when they are written, and none once a row is erased."""

from __future__ import annotations

import mmap

import numpy as np
import psutil
import pytest

from tinylora_edge.runtime.onnx.engine import Cells

SHAPES = [(2, 32), (2, 32), (1, 64)]


def resident() -> int:
    return psutil.Process().memory_info().rss


def test_rows_are_exchanged_as_far_as_they_are_used() -> None:
    cells = Cells(SHAPES, rows=3, length=100)
    assert cells.length == 128
    assert [tensor.shape for tensor in cells.tensors] == [(3, 2, 128, 32), (3, 2, 128, 32), (3, 1, 128, 64)]
    for tensor in cells.tensors:
        tensor[0, :, :7], tensor[2, :, :5] = 1, 2
    cells.swap(0, 2, (7, 5))
    for tensor in cells.tensors:
        assert (tensor[2, :, :7] == 1).all()
        assert (tensor[0, :, :5] == 2).all()
    cells.swap(0, 1, (5, 0))
    for tensor in cells.tensors:
        assert (tensor[1, :, :5] == 2).all()
        assert (tensor[2, :, :7] == 1).all(), "a neighbour"


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="this system takes no memory back")
def test_a_row_takes_memory_from_its_first_cell_until_it_is_erased() -> None:
    megabyte = 1 << 20
    before = resident()
    cells = Cells([(8, 64)] * 4, rows=16, length=1 << 14)  # 2 GB of address space
    assert resident() - before < 8 * megabyte
    for tensor in cells.tensors:
        tensor[3, :, :4096] = 1
    assert resident() - before > 30 * megabyte
    cells.erase(3)
    assert resident() - before < 8 * megabyte
    assert not any(np.any(tensor[3, :, :4096]) for tensor in cells.tensors)
