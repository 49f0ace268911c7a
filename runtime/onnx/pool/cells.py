"""The keys and values of a batch's rows, in memory of our own that ONNX Runtime writes in place."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

_BLOCK = 64
"""Cells that a row's length is a multiple of, so that rows begin at a page of memory."""


class Cells:
    """Keys and values of a number of sequences, each with room for the longest.

    The room is address space alone. A cell has memory from when it is first written until its row is erased,
    so that short sequences take little, and nothing is ever copied to grow.

    Args:
        shapes: heads and values of a head, for each tensor of keys or of values.
        rows: sequences.
        length: cells of the longest.

    Attributes:
        tensors: float32 [rows, heads, length, width], the length rounded up. Any run of rows is contiguous.
        length: cells of a row.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], *, rows: int, length: int) -> None:
        self.length = -(-length // _BLOCK) * _BLOCK
        self._maps: list[mmap.mmap] = []
        self.tensors: list[NDArray[np.float32]] = []
        for heads, width in shapes:
            shape = (rows, heads, self.length, width)
            memory = _memory(int(np.prod(shape)) * 4)
            if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a page of 2 MB would be that of many rows
                with suppress(OSError):
                    memory.madvise(mmap.MADV_NOHUGEPAGE)
            self._maps.append(memory)
            self.tensors.append(np.frombuffer(memory, np.float32).reshape(shape))

    def swap(self, one: int, other: int, lengths: tuple[int, int]) -> None:
        """Exchange two rows.

        Args:
            one, other: their numbers.
            lengths: how many cells of each are of use.
        """
        ours, theirs = lengths
        for tensor in self.tensors:
            kept = tensor[one, :, :ours].copy()
            tensor[one, :, :theirs] = tensor[other, :, :theirs]
            tensor[other, :, :ours] = kept
        for row, left in ((one, theirs), (other, ours)):
            if not left:
                self.erase(row)

    def erase(self, row: int) -> None:
        """Give the memory of a row back to the system, where it can be; its cells are of no use then."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        for memory, tensor in zip(self._maps, self.tensors, strict=True):
            size = tensor[row].nbytes
            if size % mmap.PAGESIZE == 0:
                with suppress(OSError):
                    memory.madvise(mmap.MADV_DONTNEED, row * size, size)


def _memory(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_PRIVATE"):  # what is shared, as by default, is given back by nobody
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)
