"""Shipped projections: files of P beside this one, each with what tells the factors that it belongs to.

P says something about the factors that it was learned with, and about no others. Factors that another machine
computes from the same weights agree with those to some digits, not to the bit, so a digest cannot tell. A
file holds a sketch of them: each row of A and each column of B, of length 1, times a fixed vector.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ProjectionsLeftOutWarning
from ..factors import Factors
from ..projection import Projection

FOLDER = Path(__file__).parent
"""Where `*.npz` are shipped."""

_AGREEMENT = 0.02
"""How far sketches may differ. Other factors differ by 1, those in half precision by .001."""


def find(factors: Factors) -> Projection | None:
    """Return the shipped projection that was learned with factors, or None.

    A file has P, float32 [n, M, k, k], its prior, a sketch of the factors' leading directions, float32
    [M, 2, k], and JSON as `header`: modules, architecture, factorization, and how they were learned. A
    warning says where one is of a model with the same modules, and its factors are others.
    """
    for path in sorted(FOLDER.glob("*.npz")):
        with np.load(path) as file:
            header, p = json.loads(bytes(file["header"])), file["p"]
            prior, rank = (file["prior_mean"], file["prior_covariance"]), p.shape[-1]
            learned_with = (header["architecture"], tuple(header["modules"]), header["factorization"])
            mine = factors.architecture, factors.modules, factors.factorization
            if learned_with != mine or rank > factors.rank:
                continue
            gap = float(np.abs(sketch(factors, rank) - file["sketch"]).max())
        if gap < _AGREEMENT:
            return Projection.learned(factors.modules, p, prior)
        warnings.warn(
            f"the directions of {path.name} are left out: they were learned with factors whose sketch is "
            f"{gap:.2g} away from these (at most {_AGREEMENT} is accepted). `learn` finds new ones",
            ProjectionsLeftOutWarning,
            stacklevel=2,
        )
    return None


def sketch(factors: Factors, rank: int) -> NDArray[np.float32]:
    """Return the sketch of the leading directions of factors: float32 [M, 2, rank]."""
    pairs = (factors.leading(module, (rank, rank)) for module in factors.modules)
    return np.array([[_along(a), _along(b.T)] for a, b in pairs], np.float32)


def _along(factor: NDArray[Any]) -> NDArray[np.float64]:
    """Return rows of length 1 times a vector that looks random and needs no generator: float64 [r]."""
    rows = factor.astype(np.float64)
    probe = np.cos(np.arange(1, rows.shape[1] + 1) ** 2 * 0.6180339887498949)
    found: NDArray[np.float64] = rows @ probe / np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    return found
