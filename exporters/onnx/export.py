"""The export for ONNX Runtime: of a model's weights, a bundle with a decoder graph that has the basis in it.

`OnnxExport` is the whole way: weights become factors, the graph is built where none is given, and `bake` puts
the factors in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ...basis import Basis
from ...errors import ExportError
from ...formats.bundle import ONNX_NAME
from ...formats.onnx_graph import DEFAULT, MODEL_NAME
from ..bundle_writer import Sections, refuse_existing, write_bundle
from ..factors.basis import Quality, basis_of, gather, short
from ..factors.factorize import Progress, factorized, one_blas_thread
from ..manifest import describe_export
from ..settings import ExportSettings
from ..source import Source
from . import builder
from .bake import FLAVOURS, BakeReport, bake
from .model import find_model, import_onnx

PRECISIONS = builder.PRECISIONS

Stage = Callable[[str], None]
"""Called with what begins now, in words."""


@dataclass(frozen=True)
class OnnxReport:
    """The outcome of an export for ONNX Runtime.

    Attributes:
        output: the bundle.
        basis: as it was written.
        quality: of the factorization.
        base_placed: how `base.gguf` came into the bundle, or None where there is none.
        baked: what went into the graph.
        made_by: who built the graph: `onnxruntime-genai 0.18.0`, or the path of a graph that was given.
        precision: `fp32` or `int4`, or None for a graph that was given.
    """

    output: Path
    basis: Basis
    quality: Quality
    base_placed: str | None
    baked: BakeReport
    made_by: str
    precision: str | None

    def __repr__(self) -> str:
        graph = f"{self.baked.flavour!r} {self.precision or 'graph'} by {self.made_by}"
        return f"OnnxReport({str(self.output)!r}, {short(self.basis)}, {self.quality}, {graph})"


class OnnxExport:
    """A planned export for ONNX Runtime: every cheap check has passed, no weight has been read.

    Args:
        model: a GGUF file, or a Hugging Face directory.
        output: the bundle to write.
        base: the GGUF that is deployed too, where `model` is a directory.
        graph: an ONNX model to bake; None builds one from `model`.
        with_gguf: the bundle gets the GGUF as well, for llama.cpp.
        flavour: `default` or `required`; see `bake`.
        precision: of a graph that is built: `fp32` or `int4`.
        settings: of the basis.
        workers: modules that are factorized at the same time; by default one a core.
        provenance: where the files came from, for the manifest: `ResolvedModel.provenance`.

    Attributes:
        base: what the factors are taken from.
        modules: of the basis.
        bytes: of their weights.

    Raises:
        ExportError: a file is missing, unreadable or not a model; the output exists.
        UnsupportedModelError: the architecture is unknown, or no tensor can be adapted.
        MissingExtraError: what is needed to build or to bake a graph is not installed.
        BasisError: unknown targets, or groups that cannot be made.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        output: str | PathLike[str],
        *,
        base: str | PathLike[str] | None = None,
        graph: str | PathLike[str] | None = None,
        with_gguf: bool = False,
        flavour: str = DEFAULT,
        precision: str = "fp32",
        settings: ExportSettings | None = None,
        workers: int | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        for value, known, what in ((flavour, FLAVOURS, "flavour"), (precision, PRECISIONS, "precision")):
            if value not in known:
                raise ExportError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")
        self._graph = Path(graph) if graph is not None else None
        check_graph(self._graph)
        self.settings, self._workers = settings or ExportSettings(), workers
        self._provenance = provenance
        self.output = Path(output)
        refuse_existing(self.output)
        self._flavour, self._precision, self._with_gguf = flavour, precision, with_gguf
        deployed = Path(base) if base is not None else None
        self._source = Source(Path(model), deployed, self.settings, needs_gguf=with_gguf)
        self.base = self._source.base or self._source.model
        if with_gguf:
            self._source.warn()
        self.modules, self.tying = self._source.plan()
        self.bytes = sum(map(self._source.nbytes, self.modules))

    def run(
        self, progress: Progress = lambda module, size: None, stage: Stage = lambda what: None
    ) -> OnnxReport:
        """Factorize, build, bake, and write the bundle atomically. A killed run goes on where it was.

        Args:
            progress: called after each module with its name and the bytes it has in the base.
            stage: called with what begins after the factorization.

        Raises:
            ExportError: a weight cannot be adapted, the graph cannot be built, or the bundle not written.
            UnsupportedModelError: a module has no node in the graph.
            BaseMismatchError: the weights are not those of the base or of the graph.
        """
        source, made = self._source, []

        def add(bundle: Path, basis: Basis) -> tuple[Basis, Sections]:
            baked, section = self._bake(bundle, basis, stage)
            made.append((baked, section))
            marks = (*basis.base_fingerprints, baked.fingerprint)
            return replace(basis, base_fingerprints=marks), {"onnx": section}

        with (
            factorized(self.output, source, self.modules, self._workers, progress) as journal,
            one_blas_thread(),
        ):
            found, marks = journal.read(), source.fingerprints(self.modules)
            basis = basis_of(found, self.modules, self.tying, self.settings, source.architecture, marks)
            quality = gather(found, self.modules)
            sections = describe_export(quality, source.kind, self.settings, self._provenance)
            base = source.base if self._with_gguf else None
            basis, placed = write_bundle(self.output, basis, sections, base=base, add=add)
        ((baked, section),) = made
        baked = replace(baked, model=self.output / ONNX_NAME / MODEL_NAME)
        made_by, precision = section["graph"], section["precision"]
        return OnnxReport(self.output, basis, quality, placed, baked, made_by, precision)

    def _bake(self, bundle: Path, basis: Basis, stage: Stage) -> tuple[BakeReport, dict[str, Any]]:
        """Put a graph with the basis in it into a new bundle; return what was made, and its section."""
        work, folder = bundle / "work", bundle / ONNX_NAME
        work.mkdir()
        graph, made_by, precision = self._graph, str(self._graph), None
        if graph is None:
            precision = self._precision
            stage(f"building the graph ({precision})")
            built = builder.build(self._source.model, work, precision)
            graph, made_by = built.folder, built.made_by
        stage("baking the factors in")
        folder.mkdir()
        heads, flavour, move = self._source.heads, self._flavour, self._graph is None
        baked = bake(graph, basis, folder, flavour=flavour, heads=heads, move=move)
        shutil.rmtree(work)
        return baked, _section(baked, made_by, precision)


def export_onnx(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    progress: Progress = lambda module, size: None,
    stage: Stage = lambda what: None,
    **options: Any,
) -> OnnxReport:
    """Write a bundle with an ONNX graph: `onnx/`, `basis.gguf`, `manifest.json`, and `base.gguf` if asked.

    Arguments and errors: see `OnnxExport`.
    """
    return OnnxExport(model, output, **options).run(progress, stage)


def check_graph(graph: Path | None) -> None:
    """Check what a graph needs to be built and baked, or that the one to bake is there; no model is needed.

    Args:
        graph: an ONNX model, or None for one that is built.

    Raises:
        MissingExtraError: a package is not installed.
        ExportError: the graph is not there.
    """
    import_onnx()
    if graph is None:
        builder.check_packages()
    else:
        find_model(graph)


def _section(baked: BakeReport, made_by: str, precision: str | None) -> dict[str, Any]:
    return {
        "folder": ONNX_NAME,
        "flavour": baked.flavour,
        "precision": precision,
        "graph": made_by,
        "nodes": baked.nodes,
        "nodes_added": baked.added,
        "nodes_extended": baked.sites,
        "agreement": baked.agreement,
        "fingerprint": baked.fingerprint,
    }
