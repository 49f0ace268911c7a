"""From weights to factors: modules side by side, finished ones kept in a journal."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import BasisError, ExportError, MissingExtraError
from ...factorization import RowSource, TruncatedSVD, factors, truncated_svd
from ...modules import parse
from ..settings import Settings
from ..weights.gguf import Weights
from .journal import Factors, Journal

Progress = Callable[[str, int], None]
"""Called after each module with its name and the bytes of weights that it had as stored."""

Align = Callable[[str, NDArray[np.float32], NDArray[np.float32]], tuple[NDArray[np.float32], float | None]]
"""(module, A, B) -> (B with its rows in GGUF order, distance of the factors to the deployed weight, if
there is one)."""

_SAMPLE_ROWS = 16  # of every matrix go into the key of a finished module


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


@dataclass(frozen=True)
class Work:
    """How the factors of a module are made.

    Attributes:
        weights: where the weights come from.
        settings: of the export.
        align: orders B's rows; None where the weights are the deployed ones.
        context: what else decides B's rows, as text.
        stacked: whether a module's factors have an axis for experts.
    """

    weights: Weights
    settings: Settings
    align: Align | None
    context: Callable[[str], str]
    stacked: Callable[[str], bool]

    def key(self, module: str) -> str:
        """Return what stands for everything that decides a module's factors."""
        s = self.settings
        facts = (module, s.rank, s.factorization, s.factor_dtype, self.stacked(module), self.context(module))
        return mark(self.weights.matrices(module), repr(facts))

    def factorize(self, module: str, stop: Event) -> Factors:
        """Factorize one module, expert by expert.

        Raises:
            ExportError: a weight holds NaN, is zero, or has a rank below the one asked for.
            CancelledError: `stop` was set.
        """
        pairs, quality = [], []
        stacked = self.stacked(module)
        for number, matrix in enumerate(self.weights.matrices(module)):
            if stop.is_set():
                raise CancelledError
            a, b, svd = _factorize_matrix(module, number if stacked else None, matrix, self.settings)
            pairs.append((a, b))
            quality.append(svd)
        a, b = (np.stack(part) if len(pairs) > 1 else part[0] for part in zip(*pairs, strict=True))
        if stacked and len(pairs) == 1:
            a, b = a[None], b[None]
        agreement = None
        if self.align is not None:
            b, agreement = self.align(module, a, b)
        stored = np.float16 if self.settings.factor_dtype == "f16" else np.float32
        return Factors(
            _store(module, a, stored),
            _store(module, b, stored),
            residual=max(svd.residual for svd in quality),
            passes=sum(svd.passes for svd in quality),
            converged=all(svd.converged for svd in quality),
            agreement=agreement,
        )


def mark(matrices: Sequence[RowSource], text: str = "") -> str:
    """Return what a weight is known by: SHA-256 in hexadecimal over its shape, some rows, and a text.

    The rows are spread evenly: milliseconds, however large the weight.
    """
    total = hashlib.sha256(f"tinylora factors 1\n{text}".encode())
    for matrix in matrices:
        total.update(struct.pack("<QQ", *matrix.shape))
        for row in np.unique(np.linspace(0, matrix.shape[0] - 1, _SAMPLE_ROWS).astype(int)).tolist():
            total.update(np.ascontiguousarray(matrix.rows(row, row + 1), "<f4").data)
    return total.hexdigest()


def factorize(
    work: Work,
    modules: Sequence[str],
    journal: Journal,
    workers: int,
    size: Callable[[str], int],
    step: Progress,
) -> None:
    """Factorize the modules that a journal does not have yet, and add them to it.

    Modules are handed out to threads: numpy and ggml compute without Python's lock. The factors of a module
    do not depend on what runs beside it.

    Args:
        work: how.
        modules: names in canonical order.
        journal: where finished modules go.
        workers: modules that are worked on at the same time.
        size: bytes of a module's weight.
        step: called in this thread after each module, also after one that the journal had.

    Raises:
        ExportError: a weight cannot be adapted.
        BasisError: the rank does not fit a module's shape.
        OSError: the journal cannot be written.
    """
    stop = Event()

    def finish(module: str) -> str:
        key = work.key(module)
        if not journal.has(module, key):
            journal.add(module, key, work.factorize(module, stop))
        return module

    pool = ThreadPoolExecutor(workers, "tinylora-export")
    try:
        with one_blas_thread():
            for done in [pool.submit(finish, module) for module in modules]:
                module = done.result()  # in order, so that of several bad weights the first is named
                step(module, size(module))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def gather(found: Mapping[str, Factors], modules: Sequence[str]) -> Quality:
    """Return how well the factorization of some modules went."""
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
    settings: Settings,
    architecture: str,
    fingerprints: tuple[str, ...],
) -> Basis:
    """Return the basis of factorized modules."""
    return Basis(
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


def _factorize_matrix(
    module: str, expert: int | None, matrix: RowSource, settings: Settings
) -> tuple[NDArray[np.float32], NDArray[np.float32], TruncatedSVD]:
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
    return *factors(svd, settings.factorization), svd


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
