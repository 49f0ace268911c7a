"""Sequences of different lengths as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pad(rows: Sequence[NDArray[Any]], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return rows padded with zeros at the right or left, and a mask of what is real: [rows, longest]."""
    longest = max(len(row) for row in rows)
    floats = rows[0].dtype.kind == "f"
    padded = np.zeros((len(rows), longest), np.float32 if floats else np.int64)
    mask = np.zeros((len(rows), longest), np.float32)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        padded[i, place] = row
        mask[i, place] = 1
    return torch.from_numpy(padded), torch.from_numpy(mask)
