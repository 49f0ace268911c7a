"""The basis of factorized modules, and how well their factorization went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import BasisError
from ..learned import find
from ..settings import ExportSettings
from .journal import Factors


@dataclass
class Quality:
    """The quality of a factorization.

    Attributes:
        residual: worst two-sided residual of any module.
        residual_module: where.
        unconverged: modules that met the bound on passes before the tolerance.
        passes: passes over weights, summed over modules.
        agreement: worst distance between the factors and the deployed weights; None where the factors
            were computed from those weights.
    """

    residual: float = 0.0
    residual_module: str = ""
    unconverged: list[str] = field(default_factory=list)
    passes: int = 0
    agreement: float | None = None

    def __repr__(self) -> str:
        worst = f"residual {self.residual:.2g} in {self.residual_module}, {self.passes} passes"
        open_ones = f", {len(self.unconverged)} modules unconverged" if self.unconverged else ""
        return f"<Quality: {worst}{open_ones}, agreement {self.agreement}>"


def gather(found: Mapping[str, Factors], modules: Sequence[str]) -> Quality:
    """Return the quality of some modules' factorization."""
    quality = Quality()
    for module in modules:
        one = found[module]
        quality.passes += one.passes
        if one.residual > quality.residual:
            quality.residual, quality.residual_module = one.residual, module
        if not one.converged:
            quality.unconverged.append(module)
        if one.agreement is not None:
            quality.agreement = max(one.agreement, quality.agreement or 0.0)
    return quality


def basis_of(
    found: Mapping[str, Factors],
    modules: Sequence[str],
    tying: NDArray[np.int32],
    settings: ExportSettings,
    architecture: str,
    fingerprints: tuple[str, ...],
) -> Basis:
    """Return the basis of factorized modules, with the projections that the settings ask for.

    Raises:
        BasisError: they ask for learned projections, and none are shipped for these factors.
    """
    made = Basis(
        architecture=architecture,
        modules=tuple(modules),
        rank=settings.rank,
        u=settings.u,
        groups=int(tying.max()) + 1,
        seed=settings.seed,
        factorization=settings.factorization,
        scheme=settings.tying,
        tying=tying,
        a=tuple(found[module].a for module in modules),
        b=tuple(found[module].b for module in modules),
        base_fingerprints=fingerprints,
    )
    learned = find(made) if settings.may_be_learned else None
    if learned is not None:
        return learned.apply(made)
    if settings.projection == "learned":
        raise BasisError(
            f"no learned projections are shipped for these factors ({architecture}, {len(modules)} modules, "
            f"rank {settings.rank}): export with random ones, and learn on the bundle"
        )
    return made


def short(basis: Basis) -> str:
    """Return a basis in a few words, for the `repr` of a report."""
    return f"<Basis {basis.id}: {len(basis.modules)} modules, rank {basis.rank}, {basis.size} values>"
