"""From weights to factors: the weights of a model, the settings of an export, and A and B of every module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylora_edge import limits
from tinylora_edge.errors import BaseMismatchError, BasisError, ExportError, MissingExtraError
from tinylora_edge.factorization import AGREEMENT, TruncatedSVD, factors, fitting_rows, truncated_svd
from tinylora_edge.factors import Shape, outputs_that_pay, shape_of
from tinylora_edge.modules import Heads, listed_order, parse, select
from tinylora_edge.process import cores

from .weights.dequantize import Matrix, distance
from .weights.gguf import GGUFWeights
from .weights.hf import HFConfig, HFWeights

_ROUNDING = 2.0**-10
"""Largest error that an entry of a stored factor may have, relative to the factor's largest entry: twice that
of float16 within its normal range."""

_AT_ONCE = 768 << 20
"""Most bytes of weights, as float32, that are in memory at the same time, unless a single weight has more."""

Progress = Callable[[str, int], None]
"""Called after each module with its name and the bytes of its weight as stored."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Which modules get factors, and of which kind. All settings change the factors' digest: a vector fits
    factors of the same settings alone.

    Attributes:
        rank: Q, the number of right directions. Vectors of lower ranks act on the leading ones, so that a
            large Q costs space alone.
        outputs: P, the number of left directions, Q or more; a module with fewer outputs has fewer. None for
            what `Source.fitted` chooses.
        targets: kinds, names or patterns of modules, or `light` (`modules.select`); empty for every linear
            layer.
        factor_dtype: `f32` or `f16`.
    """

    rank: int = 8
    outputs: int | None = None
    targets: tuple[str, ...] = ()
    factor_dtype: str = "f16"

    def __post_init__(self) -> None:
        if self.factor_dtype not in ("f32", "f16"):
            raise BasisError(f"unknown factor dtype {self.factor_dtype!r}: choose 'f32' or 'f16'")
        outputs, rank = shape_of(self.shape)
        if not 1 <= rank <= outputs <= limits.RANK:
            raise BasisError(
                f"factors of rank {rank} and {outputs} outputs: choose 1 <= rank <= outputs <= {limits.RANK}"
            )

    @property
    def shape(self) -> Shape:
        """(P, Q)."""
        return self.rank if self.outputs is None else self.outputs, self.rank


class Source:
    """The weights that an export makes factors of, opened, but not read. Arguments and errors: see `Export`.

    Attributes:
        base: the GGUF that is deployed, or None where a directory serves another engine alone.
        deployed: the weights of `base`.
        weights: those that factors are made of.
        architecture: `general.architecture` of the GGUF, or the one that it would have.
        modules: names of all modules that can be adapted.
        heads: numbers of attention heads, where they are known.
    """

    def __init__(self, model: Path, base: Path | None, *, needs_gguf: bool) -> None:
        if not model.exists():
            raise ExportError(
                f"{model} does not exist: pass a .gguf file or a Hugging Face directory; in Python, "
                "exporters.resolve turns the name of a model into one"
            )
        if model.is_dir() and base is None and needs_gguf:
            raise ExportError(
                f"{model} is a directory of weights: name the GGUF that is deployed with --base FILE"
            )
        self.model = model
        self.base = base if base is not None or model.is_dir() else model
        self.deployed = None if self.base is None else GGUFWeights(self.base)
        self.weights: GGUFWeights | HFWeights
        if self.deployed is None:
            config = HFConfig(model)
            self.architecture, self.heads = config.architecture, config.heads
            self.weights = HFWeights(model, self.architecture, config.blocks)
            self.modules = self.weights.modules
            return
        file = self.deployed.file
        self.architecture, self.modules = file.architecture, self.deployed.modules
        queries = file.get(f"{file.architecture}.attention.head_count")
        keys = file.get(f"{file.architecture}.attention.head_count_kv", queries)
        most = (np.max(n, initial=0) if np.asarray(n).dtype.kind in "iu" else 0 for n in (queries, keys))
        self.heads = Heads(*(int(n) or None for n in most))  # the most of all blocks, which may differ
        self.weights = self.deployed
        if model.is_dir():
            blocks = 1 + max(parse(module)[0] for module in self.modules)
            if blocks > limits.BLOCKS:
                raise ExportError(
                    f"{self.base} has tensors of block {blocks - 1:,}: at most {limits.BLOCKS:,} blocks are "
                    "read. Download or convert it again"
                )
            self.weights = HFWeights(model, self.architecture, blocks)
        elif model.resolve() != self.base.resolve():  # type: ignore[union-attr]
            self.weights = GGUFWeights(model)

    @property
    def quantized(self) -> bool:
        """Whether the model is a GGUF with quantized weights."""
        return isinstance(self.weights, GGUFWeights) and self.weights.quantized

    def nbytes(self, module: str) -> int:
        """Bytes of a module's weight as it is stored where it is deployed."""
        return (self.deployed or self.weights).nbytes(module)

    def stacked(self, module: str) -> bool:
        """Whether the factors of a module have an axis for experts."""
        return self.deployed is not None and len(self.deployed.file.tensors[module].shape) == 3

    def fitted(self, settings: ExportSettings, *, graph: bool) -> ExportSettings:
        """Return settings with a number of outputs: that of a large vector on a model of this width.

        For a graph, which computes every output for every vector, it stays the rank, and for experts, each of
        which has a B.
        """
        modules, rank = select(self.modules, settings.targets), settings.rank
        if settings.outputs is not None or graph or any(map(self.stacked, modules)):
            return settings
        width = max(min(self.weights.matrices(module)[0].shape) for module in modules)
        most = min(limits.RANK, width // 2, limits.VALUES // (len(modules) * rank))
        return replace(settings, outputs=max(rank, min(outputs_that_pay(width), most)))

    def plan(self, settings: ExportSettings) -> list[str]:
        """Return the modules that get factors, in canonical order, once every weight is known to fit."""
        modules, (outputs, rank) = select(self.modules, settings.targets), settings.shape
        what = f"rank {rank}" if outputs == rank else f"{outputs} outputs (--outputs)"
        if (entries := len(modules) * outputs * rank) > limits.VALUES:
            raise BasisError(
                f"{what} of {len(modules):,} modules would be vectors of {entries:,} numbers, and at most "
                f"{limits.VALUES:,} are read: choose fewer, or fewer modules with --targets"
            )
        most = 0
        for module in modules:
            matrices = self.weights.matrices(module)
            n_out, n_in = matrices[0].shape
            if self.deployed is not None:
                expected = self.deployed.file.tensors[module].shape
                stacked = len(expected) == 3 or len(matrices) > 1
                found = (len(matrices), n_out, n_in) if stacked else (n_out, n_in)
                if expected != found:
                    raise BaseMismatchError(
                        f"{module} is {'x'.join(map(str, expected))} in {self.base}, but "
                        f"{'x'.join(map(str, found))} in {self.model}: it is another model, or incomplete"
                    )
            if rank > min(n_out, n_in):
                raise BasisError(
                    f"{module}: rank {rank} does not fit a weight of shape {n_out} x {n_in}: choose at most "
                    f"{min(n_out, n_in)}, or leave the module out with --targets '!{module}'"
                )
            most = max(most, min(n_out, n_in))
        if outputs > most:
            raise BasisError(f"{what} do not fit any weight: choose at most {most}")
        return modules

    def align(
        self, module: str, a: NDArray[np.float32], b: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float | None]:
        """Return B with its rows in the order of the GGUF, and the distance to the weight that is deployed.

        convert_hf_to_gguf reorders the rows of q and k on Llama-family models for its RoPE. The deployed
        weights show which models those are. Where no GGUF is deployed, a list decides and the distance is
        None, as it is where the factors come from the deployed GGUF.
        """
        if self.weights is self.deployed:
            return b, None
        if self.deployed is None:
            order = listed_order(self.architecture, parse(module)[1], b.shape[-2], self.heads)
            return b[..., order, :], None
        deployed = self.deployed.matrices(module)
        rows, gap = fitting_rows(module, b, self.heads, lambda rows: distance(a, rows, deployed))
        if rows is None:
            raise BaseMismatchError(
                f"{module} in {self.base} is {gap:.2g} away from the factors of the weights (at most "
                f"{AGREEMENT} is accepted): it was made from another model, or with an unknown order of rows"
            )
        return rows, gap


@dataclass(frozen=True)
class ModuleFactors:
    """The factors of a module as they are stored.

    Attributes:
        a, b: the rows of B are in GGUF order.
        residual: the worst of its matrices.
        converged: whether all its matrices met the tolerance.
        agreement: distance to the deployed weight; None where the factors are made of that weight, or none is
            deployed.
    """

    a: NDArray[Any] = field(repr=False)
    b: NDArray[Any] = field(repr=False)
    residual: float
    converged: bool
    agreement: float | None


def quality(found: dict[str, ModuleFactors]) -> dict[str, Any]:
    """Return for the manifest how exact factors are: the worst two-sided residual, the modules that did not
    meet the tolerance, and the worst distance to deployed weights (see `ModuleFactors`)."""
    worst = max(found, key=lambda module: found[module].residual)
    return {
        "worst_residual": found[worst].residual,
        "worst_residual_module": worst,
        "unconverged": [module for module, one in found.items() if not one.converged],
        "agreement": max((gap for one in found.values() if (gap := one.agreement) is not None), default=None),
    }


def factorize(
    source: Source, modules: Sequence[str], settings: ExportSettings, progress: Progress
) -> dict[str, ModuleFactors]:
    """Return the factors of modules, by name in the same order; they do not depend on what runs beside them.

    As many weights are factorized at a time as there are cores, and as fit into 768 MB.

    Raises:
        ExportError: a weight holds NaN, is zero, or has a rank below that of the settings.
        BaseMismatchError: a weight is not the deployed one.
    """
    largest = max(4 * int(np.prod(each.shape)) for m in modules for each in source.weights.matrices(m))
    workers = max(1, min(cores(), _AT_ONCE // largest))
    stop, found = Event(), {}
    pool = ThreadPoolExecutor(workers, "tinylora-export")
    with blas_threads(cores() // workers):  # the pool ends inside, also after an error
        try:
            futures = [pool.submit(_factorize, source, module, settings, stop) for module in modules]
            for module, future in zip(modules, futures, strict=True):
                found[module] = future.result()  # in order, so that of several bad weights the first is named
                progress(module, source.nbytes(module))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return found


def blas_threads(count: int = 1) -> AbstractContextManager[Any]:
    """Limit numpy's BLAS to so many threads in a block.

    A second thread gains nothing where matrices are multiplied with a few vectors. Where the other cores are
    busy, waiting for it made the factorization of SmolLM2 10 to 50 times slower (26 to 146 s).
    """
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        raise MissingExtraError("exporting", "threadpoolctl", "export") from None
    limit: AbstractContextManager[Any] = threadpool_limits(count, user_api="blas")
    return limit


def _factorize(source: Source, module: str, settings: ExportSettings, stop: Event) -> ModuleFactors:
    """Factorize one module, whose weight is one matrix [out, in], or one for each expert."""
    pairs, found, stacked = list[Any](), list[TruncatedSVD](), source.stacked(module)
    for number, matrix in enumerate(source.weights.matrices(module)):
        if stop.is_set():
            raise CancelledError
        svd = _svd(
            f"{module}, expert {number}" if stacked else module,
            module,
            matrix,
            min(settings.shape[0], *matrix.shape),
        )
        a, b = factors(svd)
        pairs.append((a[: settings.rank], b))
        found.append(svd)
    a, b = (np.stack(part) if stacked else part[0] for part in zip(*pairs, strict=True))
    b, agreement = source.align(module, a, b)
    stored = np.float16 if settings.factor_dtype == "f16" else np.float32
    return ModuleFactors(
        _store(module, a, stored),
        _store(module, b, stored),
        residual=max(svd.residual for svd in found),
        converged=all(svd.converged for svd in found),
        agreement=agreement,
    )


def _svd(where: str, module: str, matrix: Matrix, rank: int) -> TruncatedSVD:
    try:
        svd = truncated_svd(matrix.rows(), rank)
    except BasisError as error:
        raise ExportError(f"{where}: {error}") from None
    if not svd.S[-1] > 1e-6 * svd.S[0]:
        raise ExportError(
            f"{where} cannot be adapted: its rank is below {rank}, as its singular values are "
            f"{', '.join(f'{s:.3g}' for s in svd.S)}. Leave the module out with --targets '!{module}', or "
            "lower --rank or --outputs"
        )
    return svd


def _store(module: str, factor: NDArray[np.float32], dtype: type[np.floating]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        stored = factor.astype(dtype)
    largest = float(np.abs(factor).max())
    if not np.isfinite(stored).all() or np.abs(stored - factor).max() > _ROUNDING * largest:
        block, kind = parse(module)
        raise ExportError(
            f"the factors of {kind} in block {block} reach {largest:.4g}, where float16 is not exact: it "
            "ends at 65504, and has few digits near 0. Use --factor-dtype f32"
        )
    return np.ascontiguousarray(stored)
