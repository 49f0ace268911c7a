"""Shipped projections: files of P beside this one, each with what tells the factors that it belongs to.

P says something about the factors that it was learned with, and about no others. Factors that another machine
computes from the same weights agree with those to some digits, not to the bit, so a digest cannot tell. A
file holds a sketch of them: each row of A and each column of B, of length 1, times a fixed vector.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..basis import Basis

FOLDER = Path(__file__).parent
"""Where `*.npz` are shipped."""

_AGREEMENT = 0.02
"""How far sketches may differ. Other factors differ by 1, those in half precision by .001."""


@dataclass(frozen=True, repr=False, eq=False)
class Shipped:
    """Projections that were learned for the factors of a model.

    Attributes:
        architecture, factorization: of the model's basis.
        modules: in canonical order.
        p: float32 [n, M, r, r].
        prior: mean [n] and covariance [n, n], float32.
        sketch: float32 [M, 2, r], of the factors.
        facts: how they were learned.
    """

    architecture: str
    modules: tuple[str, ...]
    factorization: str
    p: NDArray[np.float32]
    prior: tuple[NDArray[np.float32], NDArray[np.float32]]
    sketch: NDArray[np.float32]
    facts: dict[str, Any] = field(default_factory=dict)

    def fits(self, basis: Basis) -> bool:
        """Whether they were learned with the factors of a basis."""
        mine = (self.architecture, self.modules, self.factorization, self.p.shape[-1])
        if mine != (basis.architecture, basis.modules, basis.factorization, basis.rank):
            return False
        return bool(np.abs(sketch(basis) - self.sketch).max() < _AGREEMENT)


def read(path: Path) -> Shipped:
    """Return what is shipped in a file: its arrays, and JSON with the rest as `header`."""
    with np.load(path) as file:
        header = json.loads(bytes(file["header"]))
        header["modules"] = tuple(header["modules"])
        prior = file["prior_mean"], file["prior_covariance"]
        return Shipped(p=file["p"], prior=prior, sketch=file["sketch"], **header)


def find(basis: Basis) -> Shipped | None:
    """Return the shipped projections that were learned with the factors of a basis, or None."""
    return next((each for each in map(read, sorted(FOLDER.glob("*.npz"))) if each.fits(basis)), None)


def sketch(basis: Basis) -> NDArray[np.float32]:
    """Return the sketch of a basis's factors: float32 [M, 2, r]."""
    pairs = zip(basis.a, basis.b, strict=True)
    return np.array([[_along(np.asarray(a)), _along(np.asarray(b).T)] for a, b in pairs], np.float32)


def _along(factor: NDArray[Any]) -> NDArray[np.float64]:
    """Return rows of length 1 times a vector that looks random and needs no generator: float64 [r]."""
    rows = factor.astype(np.float64)
    probe = np.cos(np.arange(1, rows.shape[1] + 1) ** 2 * 0.6180339887498949)
    found: NDArray[np.float64] = rows @ probe / np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    return found
