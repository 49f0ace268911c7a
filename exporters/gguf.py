"""The export for llama.cpp: side tensors beside a GGUF base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..basis import Basis
from ..errors import BaseMismatchError
from ..factorization import AGREEMENT, distance
from ..formats.bundle import Bundle
from ..formats.side_tensors import check_shapes, fingerprint, save_basis
from .bundle_writer import refuse_existing, write_bundle
from .factors.basis import Quality, basis_of, gather, short
from .factors.factorize import Progress, factorized, one_blas_thread
from .manifest import describe_export
from .settings import ExportSettings
from .source import Source
from .weights.gguf import GGUFWeights


@dataclass(frozen=True)
class ExportReport:
    """The outcome of an export.

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

    def __repr__(self) -> str:
        return (
            f"ExportReport({str(self.output)!r}, {short(self.basis)}, {self.quality}, {self.base_placed!r})"
        )


class Export:
    """A planned export: every cheap check has passed, no weight has been read.

    Args:
        model: a GGUF file (the first of a split one), or a Hugging Face directory.
        output: the bundle to write.
        base: the GGUF that is deployed; needed with a directory, and `model` itself otherwise.
        settings: of the basis.
        workers: modules that are factorized at the same time; by default one a core.
        provenance: where the files came from, for the manifest: `ResolvedModel.provenance`.

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
        settings: ExportSettings | None = None,
        workers: int | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.settings, self._workers = settings or ExportSettings(), workers
        self._provenance = provenance
        self.output = Path(output)
        self._source = Source(Path(model), Path(base) if base is not None else None, self.settings)
        assert self._source.base is not None
        self.base = self._source.base
        refuse_existing(self.output)
        self._source.warn()
        self.modules, self.tying = self._source.plan()
        self.bytes = sum(map(self._source.nbytes, self.modules))

    def run(self, progress: Progress = lambda module, size: None) -> ExportReport:
        """Factorize, and write the bundle atomically. A killed run goes on where it was.

        Args:
            progress: called after each module with its name and the bytes it has in the base.

        Raises:
            ExportError: a weight cannot be adapted, or the bundle cannot be written.
            BaseMismatchError: the weights are not those of the base.
        """
        source = self._source
        with factorized(self.output, source, self.modules, self._workers, progress) as journal:
            found, marks = journal.read(), source.fingerprints(self.modules)
            basis = basis_of(found, self.modules, self.tying, self.settings, source.architecture, marks)
            quality = gather(found, self.modules)
            sections = describe_export(quality, source.kind, self.settings, self._provenance)
            basis, placed = write_bundle(self.output, basis, sections, base=self.base)
        assert placed is not None
        return ExportReport(self.output, basis, quality, placed, self._provenance)


def export_gguf(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    settings: ExportSettings | None = None,
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
