"""Export for llama.cpp: side tensors beside a GGUF base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._basis import Basis
from .._bundle import BASE_NAME, BASIS_NAME, MANIFEST_NAME, Bundle
from .._side_tensors import fingerprint, save_basis
from .._version import __version__
from ..errors import BaseMismatchError, ExportError
from ..modules import parse
from ._bundle_writer import new_bundle, place_base, write_manifest
from ._factorize import (
    AGREEMENT,
    Progress,
    Quality,
    Settings,
    check_shapes,
    distance,
    factorize,
    one_blas_thread,
    plan,
)
from ._weights import GGUFWeights, HFWeights, Weights

_MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        output: the bundle.
        basis: as it was written.
        quality: of the factorization.
        base_placed: how `base.gguf` came into the bundle: `hard link`, `reflink` or `copy`.
    """

    output: Path
    basis: Basis
    quality: Quality
    base_placed: str


class Export:
    """A planned export: every cheap check has passed, no weight has been read.

    Args:
        model: a GGUF file, or a Hugging Face directory.
        output: the bundle to write.
        base: the GGUF that is deployed; needed with a directory, and `model` itself otherwise.
        settings: of the basis.

    Raises:
        ExportError: a file is missing, unreadable or not a model; the output exists.
        UnsupportedModelError: the architecture is unknown, or no tensor can be adapted.
        BasisError: unknown targets, or groups that cannot be made.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        output: str | PathLike[str],
        *,
        base: str | PathLike[str] | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.output = Path(output)
        model = Path(model)
        if not model.exists():
            raise ExportError(f"{model} does not exist: pass a .gguf file or a Hugging Face directory")
        if model.is_dir() and base is None:
            raise ExportError(
                f"{model} is a directory of weights: name the GGUF that is deployed with --base FILE"
            )
        if self.output.exists():
            raise ExportError(f"{self.output} exists already: choose another output, or remove it first")
        self.base = Path(base) if base is not None else model
        self._deployed = GGUFWeights(self.base)
        self.modules, self.tying = plan(self._deployed.modules, self.settings)
        self.bytes = sum(self._deployed.file.tensors[module].nbytes for module in self.modules)
        self._weights: Weights = self._deployed
        if model.is_dir():
            blocks = 1 + max(parse(module)[0] for module in self._deployed.modules)
            self._weights = HFWeights(model, self._deployed.file.architecture, blocks)
        elif model.resolve() != self.base.resolve():
            self._weights = GGUFWeights(model)

    def run(self, progress: Progress = lambda module, size: None) -> ExportReport:
        """Factorize, and write the bundle atomically.

        Args:
            progress: called after each module with its name and the bytes it has in the base.

        Raises:
            ExportError: a weight cannot be adapted, or the bundle cannot be written.
            BaseMismatchError: the weights are not those of the base.
        """
        with one_blas_thread(), new_bundle(self.output) as partial:
            align = None if self._weights is self._deployed else self._align
            basis, quality = factorize(
                self._weights, self._deployed.file, self.modules, self.tying, self.settings, progress, align
            )
            save_basis(basis, partial / BASIS_NAME)
            placed = place_base(self.base, partial / BASE_NAME)
            write_manifest(partial / MANIFEST_NAME, self._manifest(basis, quality))
        return ExportReport(self.output, basis, quality, placed)

    def _align(
        self, module: str, a: NDArray[np.float32], b: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float]:
        """Bring B's rows into the order of the deployed weight, which decides it.

        convert_hf_to_gguf reorders the rows of q and k on Llama-family models for its RoPE; which
        models those are is seen from the weights themselves, not kept in a list.
        """
        deployed = self._deployed.matrices(module)
        best = (float("inf"), b)
        for candidate in _row_orders(b, module, self._deployed):
            best = min(best, (distance(a, candidate, deployed), candidate), key=lambda pair: pair[0])
            if best[0] <= AGREEMENT:
                return best[1], best[0]
        raise BaseMismatchError(
            f"{module} in {self.base} is {best[0]:.2g} away from the factors of the weights (at most "
            f"{AGREEMENT} is accepted): it was made from another model, or with an unknown order of rows"
        )

    def _manifest(self, basis: Basis, quality: Quality) -> dict[str, Any]:
        s = self.settings
        return {
            "format": _MANIFEST_FORMAT,
            "tool": f"tinylora-edge {__version__}",
            "architecture": basis.architecture,
            "base": {
                "file": BASE_NAME,
                "name": self.base.name,
                "bytes": self.base.stat().st_size,
                "fingerprint": basis.base_fingerprints[0],
            },
            "basis": {
                "file": BASIS_NAME,
                "digest": basis.digest,
                "modules": len(basis.modules),
                "rank": basis.rank,
                "u": basis.u,
                "groups": basis.groups,
                "seed": basis.seed,
                "tying": basis.scheme,
                "factorization": basis.factorization,
                "factor_dtype": s.factor_dtype,
            },
            "factors": {
                "from": self._weights.kind,
                "worst_residual": quality.residual,
                "worst_residual_module": quality.residual_module,
                "unconverged": quality.unconverged,
                "passes": quality.passes,
                "agreement": quality.agreement,
            },
        }


def export_gguf(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    settings: Settings | None = None,
    progress: Progress = lambda module, size: None,
) -> ExportReport:
    """Write a bundle: `base.gguf`, `basis.gguf`, `manifest.json`. Arguments and errors: see `Export`."""
    return Export(model, output, base=base, settings=settings).run(progress)


def add_base(bundle: str | PathLike[str], base: str | PathLike[str]) -> tuple[Basis, float]:
    """List another deployed form of the same model in a basis, after checking its weights.

    The digest stays, so every vector of the basis serves the new base too.

    Args:
        bundle: whose basis is extended.
        base: a GGUF of the same model, quantized in another way, say.

    Returns:
        The basis, and the worst distance between its factors and the new weights.

    Raises:
        BaseMismatchError: modules are missing, or weights are too far from the factors.
        ExportError: the file is no GGUF model.
        OSError: the basis cannot be written; it stays as it was.
    """
    found = Bundle.find(bundle)
    basis = found.basis
    weights = GGUFWeights(Path(base))
    check_shapes(weights.file, basis)
    worst = (0.0, "")
    with one_blas_thread():
        for position, module in enumerate(basis.modules):
            a, b = basis.a[position], basis.b[position]
            gap = distance(np.asarray(a, np.float32), np.asarray(b, np.float32), weights.matrices(module))
            worst = max(worst, (gap, module))
    if worst[0] > AGREEMENT:
        raise BaseMismatchError(
            f"{worst[1]} in {base} is {worst[0]:.2g} away from the factors of the basis (at most {AGREEMENT} "
            "is accepted): it is another model, and vectors of this basis would not work on it"
        )
    mark = fingerprint(weights.file, basis.modules)
    if mark not in basis.base_fingerprints:
        basis = replace(basis, base_fingerprints=(*basis.base_fingerprints, mark))
        save_basis(basis, found.basis_path)
    return basis, worst[0]


def _row_orders(b: NDArray[np.float32], module: str, deployed: GGUFWeights) -> list[NDArray[np.float32]]:
    """B as it is, and with its rows reordered as convert_hf_to_gguf does for q and k."""
    kind = parse(module)[1]
    file = deployed.file
    key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(kind)
    heads = file.get(f"{file.architecture}.attention.{key}") if key else None
    if not isinstance(heads, int) or heads < 1 or len(b) % (2 * heads):
        return [b]
    # [head, half, i] -> [head, i, half]: the halves that HF rotates become ggml's neighbouring pairs.
    halves = b.reshape(heads, 2, len(b) // heads // 2, b.shape[1])
    return [b, np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(b.shape)]
