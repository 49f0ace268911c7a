"""Shipped projections: files of P beside this one, each with what tells the factors that it belongs to.

P says something about the factors that it was learned with, and about no others. Factors that another machine
computes from the same weights agree with those to some digits, not to the bit, so a digest cannot tell. A
file holds a sketch of them: each row of A and each column of B, of length 1, times a fixed vector.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..basis import Basis
from ..errors import ExportError
from ..system import atomic_write

_FOLDER = Path(__file__).parent
_AGREEMENT = 0.02
"""How far sketches may differ. Other factors differ by 1, those in half precision by .001."""


@dataclass(frozen=True, repr=False, eq=False)
class Shipped:
    """Projections that were learned for the factors of a model.

    Attributes:
        name: of the model.
        architecture: of the model.
        modules: in canonical order.
        factorization: `left` or `sqrt`.
        p: float32 [n, M, r, r].
        prior: mean [n] and covariance [n, n], float32.
        sketch: float32 [M, 2, r], of the factors.
        facts: how they were learned.
    """

    name: str
    architecture: str
    modules: tuple[str, ...]
    factorization: str
    p: NDArray[np.float32]
    prior: tuple[NDArray[np.float32], NDArray[np.float32]]
    sketch: NDArray[np.float32]
    facts: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Shipped {self.name}: {len(self.p)} directions of {len(self.modules)} modules>"

    def fits(self, basis: Basis) -> bool:
        """Whether they were learned with the factors of a basis."""
        mine = (self.architecture, self.modules, self.factorization, self.p.shape[-1])
        if mine != (basis.architecture, basis.modules, basis.factorization, basis.rank):
            return False
        return bool(np.abs(sketch(basis) - self.sketch).max() < _AGREEMENT)

    def apply(self, basis: Basis) -> Basis:
        """Return the basis with these projections in place of its own."""
        return basis.with_projections(self.p, prior=self.prior)


def shipped_file(name: str) -> Path:
    """Return the file of shipped projections."""
    return _FOLDER / f"{name}.npz"


def shipped() -> Iterator[Shipped]:
    """Give all that are shipped, by name."""
    return map(read, sorted(_FOLDER.glob("*.npz")))


def read(path: Path) -> Shipped:
    """Return what `pack` wrote."""
    with np.load(path) as file:
        header = json.loads(bytes(file["header"]))
        return Shipped(
            path.stem,
            header["architecture"],
            tuple(header["modules"]),
            header["factorization"],
            file["p"],
            (file["prior_mean"], file["prior_covariance"]),
            file["sketch"],
            header["facts"],
        )


def find(basis: Basis) -> Shipped | None:
    """Return the shipped projections that were learned with the factors of a basis, or None."""
    return next((each for each in shipped() if each.fits(basis)), None)


def pack(basis: Basis, path: str | PathLike[str], facts: dict[str, Any]) -> None:
    """Write the projections of a learned basis to a file, atomically.

    Args:
        basis: dense, with a prior.
        path: ends in `.npz`.
        facts: how it was learned; becomes JSON.

    Raises:
        ExportError: the basis is not dense, or has no prior.
        OSError: the file cannot be written.
    """
    if basis.groups != 1 or basis.prior_mean is None or basis.prior_covariance is None:
        raise ExportError(f"basis {basis.id} is no dense learned one: it has {basis.groups} groups")
    header = {
        "architecture": basis.architecture,
        "modules": list(basis.modules),
        "factorization": basis.factorization,
        "facts": facts,
    }
    with atomic_write(Path(path)) as file:
        np.savez_compressed(
            file,
            header=np.frombuffer(json.dumps(header).encode(), np.uint8),
            p=basis.projections.swapaxes(0, 1),
            prior_mean=basis.prior_mean,
            prior_covariance=basis.prior_covariance,
            sketch=sketch(basis),
        )


def sketch(basis: Basis) -> NDArray[np.float32]:
    """Return the sketch of a basis's factors: float32 [M, 2, r]."""
    return np.stack([_sketch(a, b) for a, b in zip(basis.a, basis.b, strict=True)])


def _sketch(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    rows = np.stack([_along(a.astype(np.float64)), _along(b.astype(np.float64).T)])
    return rows.astype(np.float32)


def _along(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of length 1 times a vector that looks random and needs no generator: float64 [r]."""
    probe = np.cos(np.arange(1, rows.shape[1] + 1) ** 2 * 0.6180339887498949)
    found: NDArray[np.float64] = rows @ probe / np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    return found
