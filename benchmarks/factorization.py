"""How long it takes to get the rank-8 factors of every linear layer of a real model, and how exact they are.

Six contestants work on the 210 modules of SmolLM2-135M (Q4_1), interleaved in one process:

* ours: read the GGUF, dequantize and factorize, from a closed file to factors;
* our whole export: that, plus the digest, the side tensors on disk and the manifest;
* our factorization alone, on the float32 matrices that the last two get;
* PEFT: `get_peft_model` with TinyLoraConfig(r=8) on the transformers model; loading it is not counted;
* torch.svd_lowrank and scipy's svds on float32 matrices that they get for free; each gets, module by
  module, the cheapest setting that reaches our residual, and the search for it is not counted.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
import peft
import scipy.sparse.linalg
import threadpoolctl
import torch
import transformers
from _subjects import smollm2
from numpy.typing import NDArray
from peft.tuners.tinylora.layer import TinyLoraLayer

from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.exporters.factorize import blas_threads
from tinylora_edge.exporters.weights.gguf import GGUFWeights
from tinylora_edge.factorization import truncated_svd
from tinylora_edge.modules import canonical_order

RANK = ExportSettings().rank
TOLERANCE = 1e-3
OVERSAMPLED = RANK + 6  # the block that truncated_svd uses
MAX_NITER = 4096

Matrix = NDArray[np.float32]
Triplets = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""U [out, r], S [r], V [in, r]."""

OURS, EXPORT, PEFT = "ours: read, dequantize, factorize", "ours: whole export to disk", "PEFT init"
ALONE, LOWRANK, SVDS = "ours, dequantized", "torch.svd_lowrank, dequantized", "scipy svds, dequantized"


class Ours:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.triplets: list[Triplets] = []
        self.passes = 0

    def __call__(self) -> float:
        with bench.stopwatch() as watch, blas_threads():  # as an export does
            weights = GGUFWeights(self._path)
            svds = [
                truncated_svd(matrix.rows(), RANK, tol=TOLERANCE)
                for module in canonical_order(weights.modules)
                for matrix in weights.matrices(module)
            ]
        self.triplets = [tuple(svd) for svd in svds]
        self.passes = sum(svd.passes for svd in svds)
        return watch.seconds


class Export:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.base_placed = ""

    def __call__(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            with bench.stopwatch() as watch:
                eight = ExportSettings(outputs=RANK)
                report = export_gguf(self._path, Path(folder) / "bundle", settings=eight)
            self.base_placed = report.base_placed
        return watch.seconds


class Peft:
    """`unload` gives the transformers model back after each round, so that it is loaded once."""

    def __init__(self, path: Path) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        with redirect_stderr(StringIO()):  # its progress bar
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
        self.triplets: list[Triplets] = []
        self.weights: list[Matrix] = []

    def __call__(self) -> float:
        config = peft.TinyLoraConfig(r=RANK, target_modules="all-linear")
        with bench.stopwatch() as watch:
            adapted = peft.get_peft_model(self._model, config)
        # In the order of the forward pass, which is the canonical order of modules.
        layers = [layer for layer in adapted.modules() if isinstance(layer, TinyLoraLayer)]
        self.weights = [layer.get_base_layer().weight.detach().numpy() for layer in layers]
        self.triplets = [self._triplets(layer) for layer in layers]
        self._model = adapted.unload()
        return watch.seconds

    @staticmethod
    def _triplets(layer: Any) -> Triplets:
        a, b = (getattr(layer, f"tinylora_{x}")["default"].double().numpy() for x in "AB")
        root = np.linalg.norm(a, axis=1)  # A = sqrt(S) V^T, B = U sqrt(S)
        return b / root, root**2, (a / root[:, None]).T


class Tuned:
    """A library routine with one knob, set for each module to the cheapest value that is exact enough."""

    def __init__(
        self,
        matrices: list[Matrix],
        solve: Callable[[Matrix, float], Triplets],
        settings: Callable[[], Iterator[float]],
        limit: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._matrices, self._solve, self._limit = matrices, solve, limit
        self.settings: list[float] = []
        self.triplets: list[Triplets] = []
        for matrix in matrices:
            exact = matrix.astype(np.float64)
            for setting in settings():
                if residual(exact, solve(matrix, setting)) <= TOLERANCE:
                    break
            self.settings.append(setting)

    def __call__(self) -> float:
        pairs = zip(self._matrices, self.settings, strict=True)
        with bench.stopwatch() as watch, self._limit():
            self.triplets = [self._solve(matrix, setting) for matrix, setting in pairs]
        return watch.seconds


def block_krylov(matrix: Matrix, tol: float) -> Triplets:
    return tuple(truncated_svd(matrix, RANK, tol=tol))


def svd_lowrank(matrix: Matrix, niter: float) -> Triplets:
    torch.manual_seed(0)
    u, s, v = torch.svd_lowrank(torch.from_numpy(matrix), q=OVERSAMPLED, niter=int(niter))
    return u[:, :RANK].numpy(), s[:RANK].numpy(), v[:, :RANK].numpy()


def rising_niter() -> Iterator[float]:
    niter = 1
    while niter <= MAX_NITER:
        yield niter
        niter *= 2


def svds(matrix: Matrix, tol: float) -> Triplets:
    u, s, vt = scipy.sparse.linalg.svds(matrix, k=RANK, tol=tol, rng=np.random.default_rng(0))
    order = np.argsort(-s)
    return u[:, order], s[order], vt[order].T


def falling_tol() -> Iterator[float]:
    tol = 0.5  # of the square root of the relative error of an eigenvalue of W^T W
    while tol > 1e-7:
        yield tol
        tol /= 2


def residual(weight: NDArray[Any], triplets: Triplets) -> float:
    """max(|W v - s u|, |W^T u - s v|) / s of the worst triplet, in float64."""
    u, s, v = (x.astype(np.float64) for x in triplets)
    left, right = weight @ v - u * s, weight.T @ u - v * s
    return float((np.maximum(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=0)) / s).max())


def quality(
    weights: list[Matrix], exact: list[NDArray[np.float64]], found: list[Triplets]
) -> dict[str, float]:
    residuals = [residual(w.astype(np.float64), t) for w, t in zip(weights, found, strict=True)]
    errors = [float((np.abs(t[1] - s) / s).max()) for t, s in zip(found, exact, strict=True)]
    return {"worst_residual": max(residuals), "worst_value_error": max(errors)}


def singular_values(weight: Matrix) -> NDArray[np.float64]:
    return torch.linalg.svdvals(torch.from_numpy(weight).double())[:RANK].numpy()


def check_same(ours: list[Matrix], theirs: list[Matrix]) -> None:
    """Transformers undoes the GGUF's order of q and k rows: equal means equal up to the order of rows."""
    for position, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        sums = [np.sort(x.astype(np.float64).sum(axis=1)) for x in (a, b)]
        if not np.array_equal(*sums):
            raise SystemExit(f"module {position} of the transformers model is another matrix than ours")


@contextmanager
def threads(count: int) -> Iterator[None]:
    torch.set_num_threads(count)  # torch brings a BLAS of its own, which threadpoolctl does not see
    with threadpoolctl.threadpool_limits(count):
        yield


def run(
    contestants: dict[str, Any], matrices: list[Matrix], exact: list[NDArray[np.float64]], rounds: int
) -> dict[str, Any]:
    """One interleaved run of all: times and exactness by contestant."""
    times = bench.interleave(contestants, rounds)
    peft_weights = contestants[PEFT].weights
    check_same(matrices, peft_weights)
    results = {}
    for name, contestant in contestants.items():
        results[name] = {**bench.summarize(times[name]), "times": times[name]}
        if name != EXPORT:
            used = peft_weights if name == PEFT else matrices
            results[name] |= quality(used, exact, contestant.triplets)
    return results


def show(report: bench.Report, results: dict[str, Any], count: int) -> None:
    ours, export, theirs = (results[name]["median"] for name in (OURS, EXPORT, PEFT))
    rows = [
        [
            name,
            f"{r['min']:.2f}",
            f"{r['median']:.2f}",
            f"{r['median'] / ours:.2f}",
            f"{r['worst_residual']:.1e}" if "worst_residual" in r else "",
            f"{r['worst_value_error']:.1e}" if "worst_value_error" in r else "",
        ]
        for name, r in results.items()
    ]
    report.say(f"\nthreads of every library: {count}; load average {bench.load_average()[0]:.2f}")
    report.say(bench.table(["contestant", "min s", "median s", "x ours", "residual", "error of s"], rows))
    report.target(f"{count} threads: PEFT init / ours", theirs / ours, ">=", 4)
    report.target(f"{count} threads: PEFT init / our whole export", theirs / export, ">=", 4)


def main() -> None:
    arguments = bench.parser(__doc__, rounds=3)
    arguments.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, os.cpu_count() or 1}),
        help="(default %(default)s)",
    )
    options = arguments.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    report = bench.Report("factorization", options.json)
    path = smollm2()
    weights = GGUFWeights(path)
    modules = canonical_order(weights.modules)
    matrices = [m.rows() for name in modules for m in weights.matrices(name)]
    report.say("finding the cheapest settings of svd_lowrank and svds, loading the transformers model")
    with threads(1):
        contestants: dict[str, Any] = {
            OURS: Ours(path),
            EXPORT: Export(path),
            PEFT: Peft(path),
            ALONE: Tuned(matrices, block_krylov, lambda: iter([TOLERANCE]), blas_threads),
            LOWRANK: Tuned(matrices, svd_lowrank, rising_niter),
            SVDS: Tuned(matrices, svds, falling_tol),
        }
    exact = [singular_values(matrix) for matrix in matrices]
    results = {}
    for count in options.threads:
        with threads(count):
            results[str(count)] = run(contestants, matrices, exact, options.rounds)
        show(report, results[str(count)], count)
    worst = {
        key: max(by_name[OURS][key] for by_name in results.values())
        for key in ("worst_residual", "worst_value_error")
    }
    report.target("worst residual of ours", worst["worst_residual"], "<=", TOLERANCE)
    report.target("worst relative error of a singular value of ours", worst["worst_value_error"], "<=", 1e-4)
    report.record |= {
        "modules": len(matrices),
        "rank": RANK,
        "results_by_threads": results,
        "passes": contestants[OURS].passes,
        "base_placed": contestants[EXPORT].base_placed,
        "niter": Counter(contestants[LOWRANK].settings),
        "tol": Counter(contestants[SVDS].settings),
        "blas": [
            {key: pool.get(key) for key in ("internal_api", "version", "architecture")}
            for pool in threadpoolctl.threadpool_info()
        ],
    }
    report.finish()


if __name__ == "__main__":
    main()
