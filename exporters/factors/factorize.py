"""Factorization: one module, and the modules of an export side by side.

What is finished is kept in a journal beside the output until the output is there, so that an export that was
killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import BasisError, ExportError, MissingExtraError
from ...factorization import RowSource, TruncatedSVD, factors, truncated_svd
from ...modules import parse
from ...system import cores
from ..bundle_writer import explain, refuse_existing
from ..settings import ExportSettings
from .journal import Factors, Journal, journal_path

Progress = Callable[[str, int], None]
"""Called after each module with its name and the bytes of weights that it had as stored."""

Align = Callable[[str, NDArray[np.float32], NDArray[np.float32]], tuple[NDArray[np.float32], float | None]]
"""(module, A, B) -> (B with its rows in GGUF order, distance of the factors to the deployed weight, if
there is one)."""

_SAMPLE_ROWS = 16  # of every matrix go into the key of a finished module


class FactorSource(Protocol):
    """The source of modules' factors. `exporters.source.Source` is one."""

    def key(self, module: str) -> str:
        """Return what stands for everything that decides a module's factors."""

    def factorize(self, module: str, stop: Event) -> Factors:
        """Return a module's factors. Raises CancelledError where `stop` was set before all are made."""

    def nbytes(self, module: str) -> int:
        """Return the bytes of a module's weight as it is stored."""


@contextmanager
def factorized(
    output: Path,
    source: FactorSource,
    modules: Sequence[str],
    workers: int | None,
    progress: Progress,
    plan: dict[str, Any] | None = None,
) -> Iterator[Journal]:
    """Give a journal with the factors of all modules; once the output is there, it is removed.

    Modules that an earlier run had finished are not factorized again. Whatever is raised before, the journal
    stays for the next run, unless there is nothing in it.

    Args:
        output: what the export writes; it must not exist.
        source: what makes the factors.
        modules: names in canonical order.
        workers: modules that are factorized at the same time; by default one a core.
        progress: called in this thread after each module, also after one that the journal had.
        plan: for the journal of a part.

    Raises:
        ExportError: the output exists, another export to it is running, a weight cannot be adapted, or
            there is no room.
        BasisError: the rank does not fit a module's shape.
        BaseMismatchError: the weights are not those of the base.
    """
    refuse_existing(output)
    if workers is not None and workers < 1:
        raise ExportError(f"{workers} workers cannot do anything: choose 1 or more")
    try:
        journal = Journal(journal_path(output), plan)
    except BlockingIOError:
        raise ExportError(
            f"another export to {output} is running: wait for it, or choose another output"
        ) from None
    except OSError as error:
        raise ExportError(explain(output, error)) from error
    try:
        _fill(journal, source, modules, workers or cores(), progress)
        yield journal
    except OSError as error:
        raise ExportError(explain(output, error)) from error
    finally:
        # The output appears complete, in one rename: after it the journal is of no use, whatever is raised.
        if output.exists() or not len(journal):
            journal.remove()
        journal.close()


def factorize_module(
    module: str,
    matrices: Sequence[RowSource],
    settings: ExportSettings,
    *,
    stacked: bool,
    align: Align | None,
    stop: Event,
) -> Factors:
    """Factorize one module, expert by expert.

    Args:
        module: its name.
        matrices: its weight, [out, in]: one matrix, or one an expert.
        settings: of the export.
        stacked: the factors get an axis for experts.
        align: orders B's rows; None where the weight is the deployed one.
        stop: set where the factors are not wanted any more.

    Raises:
        ExportError: a weight holds NaN, is zero, or has a rank below the one asked for.
        BaseMismatchError: the weight is not the deployed one.
        CancelledError: `stop` was set.
    """
    pairs, quality = [], []
    for number, matrix in enumerate(matrices):
        if stop.is_set():
            raise CancelledError
        one_a, one_b, svd = _factorize_matrix(module, number if stacked else None, matrix, settings)
        pairs.append((one_a, one_b))
        quality.append(svd)
    a, b = (np.stack(part) if len(pairs) > 1 else part[0] for part in zip(*pairs, strict=True))
    if stacked and len(pairs) == 1:
        a, b = a[None], b[None]
    agreement = None
    if align is not None:
        b, agreement = align(module, a, b)
    stored = np.float16 if settings.factor_dtype == "f16" else np.float32
    return Factors(
        _store(module, a, stored),
        _store(module, b, stored),
        residual=max(svd.residual for svd in quality),
        passes=sum(svd.passes for svd in quality),
        converged=all(svd.converged for svd in quality),
        agreement=agreement,
    )


def module_key(
    module: str, matrices: Sequence[RowSource], settings: ExportSettings, *, stacked: bool, context: str
) -> str:
    """Return what stands for everything that decides a module's factors.

    Args:
        module, matrices, settings, stacked: see `factorize_module`.
        context: what else decides the order of B's rows.
    """
    s = settings
    facts = (module, s.rank, s.factorization, s.factor_dtype, stacked, context)
    return mark(matrices, repr(facts))


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


def _fill(
    journal: Journal, source: FactorSource, modules: Sequence[str], workers: int, progress: Progress
) -> None:
    """Factorize the modules that a journal does not have yet, and add them to it.

    Modules are handed out to threads: numpy and ggml compute without Python's lock. The factors of a module
    do not depend on what runs beside it.
    """
    stop = Event()

    def finish(module: str) -> str:
        key = source.key(module)
        if not journal.has(module, key):
            journal.add(module, key, source.factorize(module, stop))
        return module

    pool = ThreadPoolExecutor(workers, "tinylora-export")
    try:
        with one_blas_thread():
            for done in [pool.submit(finish, module) for module in modules]:
                module = done.result()  # in order, so that of several bad weights the first is named
                progress(module, source.nbytes(module))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _factorize_matrix(
    module: str, expert: int | None, matrix: RowSource, settings: ExportSettings
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
