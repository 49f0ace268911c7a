"""Export for llama.cpp: side tensors beside a GGUF base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..basis import Basis
from ..errors import BaseMismatchError
from ..formats.bundle import BASIS_NAME, MANIFEST_NAME, Bundle
from ..formats.side_tensors import fingerprint, load_basis, save_basis
from .agreement import AGREEMENT, check_shapes, distance
from .bundle_writer import new_bundle, place_gguf, refuse_existing, write_manifest
from .factors.checkpoint import factorized
from .factors.factorize import Progress, Quality, basis_of, gather, one_blas_thread
from .manifest import describe, describe_gguf
from .settings import Settings
from .source import Source
from .weights.gguf import GGUFWeights


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        output: the bundle.
        basis: as it was written.
        quality: of the factorization.
        base_placed: how `base.gguf` came into the bundle: `hard link`, `reflink` or `copy`.
        provenance: where the files came from, if that is known.
    """

    output: Path
    basis: Basis
    quality: Quality
    base_placed: str
    provenance: dict[str, Any] | None = None


class Export:
    """A planned export: every cheap check has passed, no weight has been read.

    Args:
        model: a GGUF file (the first of a split one), or a Hugging Face directory.
        output: the bundle to write.
        base: the GGUF that is deployed; needed with a directory, and `model` itself otherwise.
        settings: of the basis.
        workers: modules that are factorized at the same time; by default one a core.
        provenance: where the files came from, for the manifest: `Resolved.provenance`.

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
        workers: int | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.settings, self._workers = settings or Settings(), workers
        self._provenance = provenance
        self.output = Path(output)
        self._source = Source(Path(model), Path(base) if base is not None else None)
        assert self._source.base is not None
        self.base = self._source.base
        refuse_existing(self.output)
        self._source.warn()
        self.modules, self.tying = self._source.plan(self.settings)
        self.bytes = sum(map(self._source.nbytes, self.modules))

    def run(self, progress: Progress = lambda module, size: None) -> ExportReport:
        """Factorize, and write the bundle atomically. A killed run goes on where it was.

        Args:
            progress: called after each module with its name and the bytes it has in the base.

        Raises:
            ExportError: a weight cannot be adapted, or the bundle cannot be written.
            BaseMismatchError: the weights are not those of the base.
        """
        work = self._source.work(self.settings)
        nbytes = self._source.nbytes
        with factorized(self.output, work, self.modules, self._workers, nbytes, progress) as journal:
            found = journal.read()
            with new_bundle(self.output) as partial:
                marks = self._source.fingerprints(self.modules)
                basis = basis_of(
                    found, self.modules, self.tying, self.settings, self._source.architecture, marks
                )
                quality = gather(found, self.modules)
                save_basis(basis, partial / BASIS_NAME)
                placed = place_gguf(self.base, partial)
                write_manifest(partial / MANIFEST_NAME, self._manifest(basis, quality))
        basis = load_basis(self.output / BASIS_NAME)
        return ExportReport(self.output, basis, quality, placed, self._provenance)

    def _manifest(self, basis: Basis, quality: Quality) -> dict[str, Any]:
        base = describe_gguf(self.base, basis.base_fingerprints[0])
        return describe(basis, quality, self._source.kind, self.settings, self._provenance, base=base)


def export_gguf(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    settings: Settings | None = None,
    workers: int | None = None,
    provenance: dict[str, Any] | None = None,
    progress: Progress = lambda module, size: None,
) -> ExportReport:
    """Write a bundle: `base.gguf`, `basis.gguf`, `manifest.json`. Arguments and errors: see `Export`."""
    planned = Export(model, output, base=base, settings=settings, workers=workers, provenance=provenance)
    return planned.run(progress)


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
