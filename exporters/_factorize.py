"""From weights to a basis: which modules, tied how, factorized one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._basis import Basis
from .._gguf import GGUFFile
from ..errors import BaseMismatchError, BasisError, ExportError, MissingExtraError
from ..factorization import LEFT, SQRT, RowSource, factors, truncated_svd
from ..modules import parse, select
from ..projection import project
from ..tying import tie
from ._weights import Weights

Progress = Callable[[str, int], None]
"""Called after each module with its name and the bytes of weights that it had as stored."""

Align = Callable[[str, NDArray[np.float32], NDArray[np.float32]], tuple[NDArray[np.float32], float | None]]
"""(module, A, B) -> (B with its rows in GGUF order, distance of the factors to the deployed weight, if
there is one)."""

AGREEMENT = 0.3
"""Largest |W v - s u| / s at which a deployed weight counts as the one that was factorized.

Quantization to 2 bits gave up to 0.16; another row order or another model gives 1 and more.
"""


class Deployed(Protocol):
    """What a basis is for."""

    architecture: str

    def nbytes(self, module: str) -> int:
        """Bytes of a module's weight."""

    def stacked(self, module: str) -> bool:
        """Whether its factors have an axis for experts."""

    def fingerprints(self, modules: Sequence[str]) -> tuple[str, ...]:
        """Fingerprints of the deployed forms that are known by now."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an export decides. The defaults are DESIGN 5's.

    Attributes:
        rank: r of the factors.
        u: entries of v that one module reads.
        groups: G, rows of v; None means 13, or 1 for tying `full`.
        tying: `tiled`, `structured` or `full`.
        seed: projection seed.
        targets: kinds, names or patterns of modules; empty for every linear layer.
        factor_dtype: `f32` or `f16`.
        factorization: `left` or `sqrt`.
    """

    rank: int = 2
    u: int = 1
    groups: int | None = None
    tying: str = "tiled"
    seed: int = 42
    targets: tuple[str, ...] = ()
    factor_dtype: str = "f32"
    factorization: str = LEFT

    def __post_init__(self) -> None:
        if self.factorization not in (LEFT, SQRT):
            raise BasisError(f"unknown factorization {self.factorization!r}: choose '{LEFT}' or '{SQRT}'")
        if self.factor_dtype not in ("f32", "f16"):
            raise BasisError(f"unknown factor dtype {self.factor_dtype!r}: choose 'f32' or 'f16'")


@dataclass
class Quality:
    """How well the factorization went.

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


def plan(deployed_modules: list[str], settings: Settings) -> tuple[list[str], NDArray[np.int32]]:
    """Return the modules of a basis in canonical order and their groups.

    Raises:
        BasisError: unknown targets, or groups that cannot be made.
    """
    modules = select(deployed_modules, settings.targets)
    project(settings.seed, modules[0], settings.u, settings.rank)  # refuses what makes no projection
    groups = settings.groups
    if groups is None:
        groups = 1 if settings.tying == "full" else 13
    return modules, tie(modules, settings.tying, groups)


def factorize(
    weights: Weights,
    deployed: Deployed,
    modules: list[str],
    tying: NDArray[np.int32],
    settings: Settings,
    progress: Progress,
    align: Align | None,
) -> tuple[Basis, Quality]:
    """Factorize every module and return the basis.

    Args:
        weights: where the weights come from.
        deployed: what the basis is for.
        modules: names in canonical order.
        tying: group of each module.
        settings: of the export.
        progress: called after each module.
        align: orders B's rows; None where the weights are the deployed ones.

    Raises:
        ExportError: a weight holds NaN, is zero, or has a rank below the one asked for.
        BasisError: the rank does not fit a module's shape.
    """
    quality = Quality()
    stored = np.float16 if settings.factor_dtype == "f16" else np.float32
    all_a, all_b = [], []
    for module in modules:
        stacked = deployed.stacked(module)
        pairs = [
            _factorize_matrix(module, expert if stacked else None, m, settings, quality)
            for expert, m in enumerate(weights.matrices(module))
        ]
        a, b = (np.stack(part) if len(pairs) > 1 else part[0] for part in zip(*pairs, strict=True))
        if stacked and len(pairs) == 1:
            a, b = a[None], b[None]
        if align is not None:
            b, distance = align(module, a, b)
            if distance is not None:
                quality.agreement = max(distance, quality.agreement or 0.0)
        all_a.append(_store(module, a, stored))
        all_b.append(_store(module, b, stored))
        progress(module, deployed.nbytes(module))
    basis = Basis(
        architecture=deployed.architecture,
        modules=tuple(modules),
        rank=settings.rank,
        u=settings.u,
        groups=int(tying.max()) + 1,
        seed=settings.seed,
        factorization=settings.factorization,
        scheme=settings.tying,
        tying=tying,
        a=tuple(all_a),
        b=tuple(all_b),
        base_fingerprints=deployed.fingerprints(modules),
    )
    return basis, quality


def one_blas_thread() -> AbstractContextManager[Any]:
    """Keep numpy's BLAS to one thread for a while.

    On matrices that are multiplied with a few vectors a second thread gains nothing, and where the other
    cores are busy its waiting made the factorization of SmolLM2 10 to 50 times slower (26 to 146 s).

    Raises:
        MissingExtraError: threadpoolctl is not installed.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        raise MissingExtraError("exporting", "threadpoolctl", "export") from None
    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def distance(a: NDArray[np.float32], b: NDArray[np.float32], matrices: list[RowSource]) -> float:
    """Return how far a weight is from its factors: max over triplets of |W v - s u| / s; inf for NaN.

    Args:
        a: A [r, in], or [experts, r, in]; rows are orthogonal.
        b: B [out, r], or [experts, out, r], rows in the order of the weight's.
        matrices: the weight, one matrix an expert.
    """
    expected_shape = (b.shape[-2], a.shape[-1])
    if any(matrix.shape != expected_shape for matrix in matrices) or len(matrices) != a[..., 0, 0].size:
        return inf
    worst = 0.0
    pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), matrices, strict=True)
    for one_a, one_b, matrix in pairs:
        one_a, one_b = one_a.astype(np.float32), one_b.astype(np.float32)
        norms = np.linalg.norm(one_a, axis=1)
        v = (one_a / norms[:, None]).T
        product = np.concatenate([matrix.rows(i, min(i + 512, matrix.shape[0])) @ v for i in _steps(matrix)])
        expected = one_b * norms  # (U sqrt(S)) sqrt(S), or (U S) 1
        gap = np.linalg.norm(product - expected, axis=0) / np.linalg.norm(expected, axis=0)
        worst = max(worst, float(gap.max()) if np.isfinite(gap).all() else inf)
    return worst


def check_shapes(base: GGUFFile, basis: Basis) -> None:
    """Check that a GGUF has a basis's architecture and every module of it, in its shape.

    Raises:
        BaseMismatchError: the architecture differs, or a module is missing or has another shape.
    """
    if base.architecture != basis.architecture:
        raise BaseMismatchError(
            f"the base has architecture {base.architecture!r}, but the basis is for {basis.architecture!r}"
        )
    for position, module in enumerate(basis.modules):
        a, b = basis.a[position], basis.b[position]
        expected = (*b.shape[:-1], a.shape[-1])
        tensor = base.tensors.get(module)
        if tensor is None or tensor.shape != expected:
            found = "no such tensor" if tensor is None else f"shape {tensor.shape}"
            raise BaseMismatchError(f"{module} has shape {expected} in the basis, but {found} in the base")


def _steps(matrix: RowSource) -> range:
    return range(0, matrix.shape[0], 512)


def _factorize_matrix(
    module: str, expert: int | None, matrix: RowSource, settings: Settings, quality: Quality
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    where = module if expert is None else f"{module}, expert {expert},"
    try:
        svd = truncated_svd(matrix, settings.rank)
    except BasisError as error:
        raise ExportError(f"{where.rstrip(',')}: {error}") from None
    if svd.S[-1] <= 1e-6 * svd.S[0] or not svd.S[0] > 0:
        found, help_with = f"singular values {', '.join(f'{s:.3g}' for s in svd.S)}", ", or lower --rank"
        if not svd.S[0] > 0:
            found, help_with = "nothing but zeros", ""
        raise ExportError(
            f"{where} has {found}: its rank is below {settings.rank}, so it cannot be adapted. Leave "
            f"{'it' if expert is None else 'the module'} out with --targets '!{module}'{help_with}"
        )
    quality.passes += svd.passes
    if svd.residual > quality.residual:
        quality.residual, quality.residual_module = svd.residual, module
    if not svd.converged and module not in quality.unconverged:
        quality.unconverged.append(module)
    return factors(svd, settings.factorization)


def _store(module: str, factor: NDArray[np.float32], dtype: type[np.floating]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        stored = factor.astype(dtype)
    if not np.isfinite(stored).all():
        block, kind = parse(module)
        raise ExportError(
            f"the factors of {kind} in block {block} reach {np.abs(factor).max():.4g}, beyond float16's "
            "65504: use --factor-dtype f32"
        )
    return np.ascontiguousarray(stored)
