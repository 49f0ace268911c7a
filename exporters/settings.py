"""Settings of an export: which modules a basis adapts, tied how, with factors of which kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import BasisError
from ..factorization import LEFT, SQRT
from ..modules import select
from ..projection import project, tie

PROJECTIONS: tuple[str, ...] = ("random", "learned", "auto")

_SEED = 42


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The decisions of an export. By default 13 numbers: r = 2, u = 1 and 13 groups, tied in tiles of depth.

    The paper (arXiv 2602.04118) spends numbers on less tying before more u, and with u = 1 a vector is the
    scales of llama.cpp's adapters.

    Attributes:
        rank: r of the factors.
        u: entries of v that one module reads.
        groups: G, rows of v; None means 13, 1 for tying `full`, or a group a module for `none`.
        tying: `tiled`, `structured`, `full` or `none`. With `none` and u = r^2 a vector holds all of R.
        seed: projection seed.
        targets: kinds, names or patterns of modules, or `light` (`modules.select`); empty for every linear
            layer.
        factor_dtype: `f32` or `f16`.
        factorization: `left` or `sqrt`.
        projection: `random`, the paper's, or `learned`: shipped for few models (`exporters.learned`).
            Learned ones are dense: u is their number, in one group. `auto`, which is what the command
            `export` takes, is `learned` where they are shipped for the factors and u, groups, tying and seed
            are left as they are, and `random` otherwise.
    """

    rank: int = 2
    u: int = 1
    groups: int | None = None
    tying: str = "tiled"
    seed: int = _SEED
    targets: tuple[str, ...] = ()
    factor_dtype: str = "f32"
    factorization: str = LEFT
    projection: str = "random"

    def __post_init__(self) -> None:
        if self.factorization not in (LEFT, SQRT):
            raise BasisError(f"unknown factorization {self.factorization!r}: choose '{LEFT}' or '{SQRT}'")
        if self.factor_dtype not in ("f32", "f16"):
            raise BasisError(f"unknown factor dtype {self.factor_dtype!r}: choose 'f32' or 'f16'")
        if self.projection not in PROJECTIONS:
            known = ", ".join(PROJECTIONS)
            raise BasisError(f"unknown projection {self.projection!r}: choose one of {known}")
        if self.projection == "learned" and not self._shape_is_default:
            raise BasisError(
                f"learned projections have one group and a u of their own, not u {self.u}, groups "
                f"{self.groups} and tying {self.tying!r}: leave these as they are, or take 'random'"
            )

    @property
    def may_be_learned(self) -> bool:
        """Whether learned projections are taken where there are any: asked for, or nothing against it."""
        asked = self.projection == "auto" and self.seed == _SEED and self._shape_is_default
        return asked or self.projection == "learned"

    @property
    def _shape_is_default(self) -> bool:
        return (self.u, self.groups, self.tying) == (1, None, "tiled")


def plan(deployed_modules: list[str], settings: ExportSettings) -> tuple[list[str], NDArray[np.int32]]:
    """Return the modules of a basis in canonical order and their groups.

    Raises:
        BasisError: unknown targets, or groups that cannot be made.
    """
    modules = select(deployed_modules, settings.targets)
    project(settings.seed, modules[0], settings.u, settings.rank)  # refuses what makes no projection
    groups = settings.groups
    if groups is None:
        groups = {"full": 1, "none": len(modules)}.get(settings.tying, 13)
    return modules, tie(modules, settings.tying, groups)
