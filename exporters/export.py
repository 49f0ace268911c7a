"""The export: weights become factors, beside the GGUF that is deployed, in an ONNX graph, or both.

An `Export` is made first, which refuses what it can before a weight is read; its `run` writes the bundle.
`export_gguf` and `export_onnx` do both.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.basis import Bases, Basis
from tinylora_edge.errors import (
    BaseMismatchError,
    ExportError,
    ProjectionsLeftOutWarning,
    UnsupportedModelError,
)
from tinylora_edge.factorization import AGREEMENT
from tinylora_edge.factors import Factors
from tinylora_edge.formats.bundle import BASE_NAME, BASE_STEM, BASIS_NAME, MANIFEST_NAME, ONNX_NAME
from tinylora_edge.formats.gguf import gguf_paths, split_name
from tinylora_edge.formats.onnx_graph import DEFAULT
from tinylora_edge.formats.side_tensors import check_shapes, fingerprint, load_bases, save_bases
from tinylora_edge.formats.signatures import changing
from tinylora_edge.jsonio import write_json
from tinylora_edge.projection import Projection
from tinylora_edge.version import __version__
from tinylora_edge.wire.tags import Ed25519Signer
from tinylora_edge.writes import atomic_write, locked, sync_directory

from .factorize import ExportSettings, ModuleFactors, Progress, Source, blas_threads, factorize, quality
from .onnx import FLAVOURS, PRECISIONS, bake, build, check_builder
from .weights.dequantize import distance
from .weights.gguf import GGUFWeights, warn_of

FORMATS = ("gguf", "onnx", "both")

_FORMAT = 2

SHIPPED = Path(__file__).parent
"""The folder of the projections that are shipped, `*.npz`."""

_SKETCHES_AGREE = 0.02
"""Largest difference of two sketches of the same factors. In half precision they differ by .001, and sketches
of other factors by 1."""

Stage = Callable[[str], None]
"""Called with the name of each step as it begins."""


@dataclass(frozen=True)
class ExportReport:
    """The outcome of an export.

    Attributes:
        output: the bundle.
        bases: as they were written.
        quality: of the factors, as the manifest has it.
        base_placed: how `base.gguf` came into the bundle: `hard link` or `copy`; None where there is none.
        onnx: what the manifest says of the graph; None for GGUF alone.
    """

    output: Path
    bases: Bases
    quality: dict[str, Any]
    base_placed: str | None
    onnx: dict[str, Any] | None = None


class Export:
    """A planned export: every cheap check has passed, no weight has been read.

    Args:
        model: a GGUF file (the first of a split one), or a Hugging Face directory.
        output: the bundle to write.
        base: the GGUF that is deployed, where `model` is a directory; `model` itself otherwise.
        target: `gguf`, `onnx` or `both`.
        flavour: `default` or `required`; see `onnx.bake`.
        precision: of the graph: `fp32`, `int8` or `int4` (see `onnx.build`). By default `int8` for a
            quantized GGUF, which keeps its weights, and `fp32` for others.
        settings: of the factors.
        provenance: where the files came from, for the manifest: `ResolvedModel.provenance`.

    Attributes:
        base: the GGUF that is deployed; where there is none, the model.
        modules: names of the modules that get factors.
        bytes: size of their weights.

    Raises:
        ExportError: a file is missing, unreadable or not a model; the output exists.
        UnsupportedModelError: the architecture is unknown, or no tensor can be adapted.
        MissingExtraError: what is needed to build a graph is not installed.
        BasisError: unknown targets, or a rank that a weight does not have.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        output: str | PathLike[str],
        *,
        base: str | PathLike[str] | None = None,
        target: str = "gguf",
        flavour: str = DEFAULT,
        precision: str | None = None,
        settings: ExportSettings | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        for value, known in ((target, FORMATS), (flavour, FLAVOURS), (precision, (None, *PRECISIONS))):
            if value not in known:
                raise ExportError(f"unknown choice {value!r}: choose one of {', '.join(filter(None, known))}")
        self._gguf, self._onnx = target != "onnx", target != "gguf"
        self._flavour = flavour
        if self._onnx:
            check_builder()
        self._provenance = provenance
        self.output = Path(output)
        refuse_existing(self.output)
        deployed = Path(base) if base is not None else None
        self._source = Source(Path(model), deployed, needs_gguf=self._gguf)
        self._precision = precision or ("int8" if self._source.quantized else "fp32")
        self.base = self._source.base or self._source.model
        if self._onnx and self._source.model.is_dir() and not any(self._source.model.glob("*tok*")):
            raise ExportError(f"{model} has no tokenizer.json, which a graph's folder needs: copy it there")
        if self._gguf and self._source.deployed is not None:
            warn_of(self._source.architecture, self._source.deployed.left_out)
        self.settings = self._source.fitted(settings or ExportSettings(), graph=self._onnx)
        self.modules = self._source.plan(self.settings)
        if self._onnx and (experts := list(filter(self._source.stacked, self.modules))):
            raise UnsupportedModelError(
                f"{experts[0]} holds experts, which ONNX graphs compute in one node that cannot be extended: "
                "leave them out with --targets"
            )
        self.bytes = sum(map(self._source.nbytes, self.modules))

    def run(
        self, progress: Progress = lambda module, size: None, stage: Stage = lambda what: None
    ) -> ExportReport:
        """Factorize, build and bake the graph, and write the bundle, complete or not at all.

        UnsupportedModelError: a module has no node in the graph. BaseMismatchError: the weights are not those
        of the base or of the graph. ExportError: one cannot be adapted, the graph not built, or not written.
        """
        source = self._source
        with new_bundle(self.output) as partial:
            found = factorize(source, self.modules, self.settings, progress)
            bases, onnx = self._bases(found), None
            about = {"from": source.weights.kind, **quality(found)}
            sections: dict[str, dict[str, Any] | None] = {"source": self._provenance, "factors": about}
            if self._onnx:
                with blas_threads():
                    onnx = sections["onnx"] = self._bake(partial, bases.factors, stage)
                bases = bases.with_fingerprint(onnx["fingerprint"])
            placed = fill_bundle(partial, bases, sections, base=source.base if self._gguf else None)
        return ExportReport(self.output, load_bases(self.output / BASIS_NAME), about, placed, onnx)

    def _bases(self, found: dict[str, ModuleFactors]) -> Bases:
        factors = Factors(
            architecture=self._source.architecture,
            modules=tuple(self.modules),
            rank=self.settings.rank,
            a=tuple(found[module].a for module in self.modules),
            b=tuple(found[module].b for module in self.modules),
        )
        shipped, deployed = find_shipped(factors), self._source.deployed
        marks = () if deployed is None else (fingerprint(deployed.file, self.modules),)
        return Bases(factors, (shipped,) if shipped else (), marks)

    def _bake(self, bundle: Path, factors: Factors, stage: Stage) -> dict[str, Any]:
        folder, heads = bundle / ONNX_NAME, self._source.heads
        folder.mkdir()
        stage(f"building the graph ({self._precision})")
        built = build(self._source.model, folder, self._precision, heads)
        stage("baking the factors in")
        fingerprint, agreement = bake(folder, factors, heads, self._flavour)
        about = {"folder": ONNX_NAME, "flavour": self._flavour, "precision": self._precision, **built}
        return {**about, "agreement": agreement, "fingerprint": fingerprint}


def export_gguf(model: str | PathLike[str], output: str | PathLike[str], **options: Any) -> ExportReport:
    """Write a bundle: `base.gguf`, `basis.gguf`, `manifest.json`. Arguments and errors: see `Export`."""
    return Export(model, output, **options).run()


def export_onnx(
    model: str | PathLike[str], output: str | PathLike[str], *, with_gguf: bool = False, **options: Any
) -> ExportReport:
    """Write a bundle: `onnx/`, `basis.gguf`, `manifest.json`, and with `with_gguf` also `base.gguf`.

    Arguments and errors: see `Export`, whose `run` also reports its progress.
    """
    return Export(model, output, target="both" if with_gguf else "onnx", **options).run()


def add_base(
    bundle: str | PathLike[str], base: str | PathLike[str], *, signer: Ed25519Signer | None = None
) -> tuple[Bases, float]:
    """List another deployed form of the same model in a bundle, after checking its weights.

    The digest stays, so every vector serves the new base too. Returns the bases, and the worst
    distance between the factors and the weights of `base`, a GGUF. A signed bundle is signed again, by its
    own signer; see `add_projection`.

    Raises:
        BaseMismatchError: modules are missing, or weights are too far from the factors.
        ExportError: the file is no GGUF model.
        TrustError: the bundle is signed and there is no signer, or is not as the signer signed it.
        OSError: the side tensors cannot be written; they stay as they were.
    """
    with changing(bundle, signer) as found:
        factors = found.factors
        weights = GGUFWeights(Path(base))
        check_shapes(weights.file, factors)
        worst = (0.0, "")
        with blas_threads():
            for module in factors.modules:
                gap = distance(*factors.leading(module, factors.shape), weights.matrices(module))
                worst = max(worst, (gap, module))
        if worst[0] > AGREEMENT:
            raise BaseMismatchError(
                f"{worst[1]} in {base} is {worst[0]:.2g} away from the factors (at most {AGREEMENT} "
                "is accepted): it is another model, and vectors of these factors would not work on it"
            )
        mark = fingerprint(weights.file, factors.modules)
        bases = found.bases
        if mark not in bases.fingerprints:
            bases = bases.with_fingerprint(mark)
            save_bases(bases, found.basis_path)
    return bases, worst[0]


def add_projection(
    bundle: str | PathLike[str],
    projection: Projection,
    facts: Mapping[str, Any] | None = None,
    *,
    signer: Ed25519Signer | None = None,
) -> Basis:
    """Add a projection to a bundle, whose `basis(numbers=)` returns it from then on.

    The bundle still takes every frame that it took. Of several projections with as many numbers the one that
    was added last is returned. A signed bundle is signed again, by its own signer. `facts` say how the
    projection was learned, for the manifest.

    Raises:
        BasisError: it does not fit the factors, or there are too many.
        TrustError: the bundle is signed and there is no signer, or is not as the signer signed it.
        OSError: a file cannot be written; side tensors and manifest are whole, before or after.
    """
    with changing(bundle, signer) as found:
        bases, manifest = found.bases.with_projection(projection), found.manifest
        save_bases(bases, found.basis_path)
        if found.manifest_path is not None and manifest:
            write_json(found.manifest_path, manifest | {"basis": _described(bases) | {"learned": facts}})
    return Basis(bases.factors, projection)


# Shipped projections: files of P beside this one, each with what tells the factors that it belongs to.


def find_shipped(factors: Factors) -> Projection | None:
    """Return the shipped projection that was learned with these factors, or None.

    A digest cannot tell, since another machine computes the same factors to some digits only. So a file has
    a sketch of its factors, float32 [M, 2, k], beside P and its prior. Where the modules are the same and the
    sketches differ, a ProjectionsLeftOutWarning says so.
    """
    for path in sorted(SHIPPED.glob("*.npz")):
        with np.load(path) as file:
            header, p = json.loads(bytes(file["header"])), file["p"]
            prior, rank = (file["prior_mean"], file["prior_covariance"]), p.shape[-1]
            learned_with = (header["architecture"], tuple(header["modules"]), header["factorization"])
            mine = factors.architecture, factors.modules, factors.factorization
            if learned_with != mine or rank > factors.rank:
                continue
            gap = float(np.abs(sketch(factors, rank) - file["sketch"]).max())
        if gap < _SKETCHES_AGREE:
            return Projection.learned(factors.modules, p, prior)
        warnings.warn(
            f"the directions of {path.name} are left out: they were learned with factors whose sketch is "
            f"{gap:.2g} away from these (at most {_SKETCHES_AGREE} is accepted). `learn` finds new ones",
            ProjectionsLeftOutWarning,
            stacklevel=2,
        )
    return None


def sketch(factors: Factors, rank: int) -> NDArray[np.float32]:
    """Return the sketch of the leading directions of factors: float32 [M, 2, rank]."""
    pairs = (factors.leading(module, (rank, rank)) for module in factors.modules)
    return np.array([[_along(a), _along(b.T)] for a, b in pairs], np.float32)


def _along(factor: NDArray[Any]) -> NDArray[np.float64]:
    """Return the products of rows, scaled to length 1, with a fixed vector that looks random: float64 [r]."""
    rows = factor.astype(np.float64)
    probe = np.cos(np.arange(1, rows.shape[1] + 1) ** 2 * 0.6180339887498949)
    found: NDArray[np.float64] = rows @ probe / np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    return found


# Bundles as they are written: complete, or not at all.


def refuse_existing(output: Path) -> None:
    """Raise an ExportError where something is at the output already, or no folder can be."""
    if str(output) == "-":
        raise ExportError("export writes a folder, not to stdout: name the folder with --output")
    if not output.parent.is_dir():
        raise ExportError(f"{output} could not be written: {output.parent} is not a directory. Make it first")
    if output.exists() or output.is_symlink():
        raise ExportError(f"{output} exists already: choose another output, or remove it first")


def fill_bundle(
    bundle: Path, bases: Bases, sections: dict[str, dict[str, Any] | None], *, base: Path | None
) -> str | None:
    """Put side tensors, the GGUF `base` and the manifest into a new bundle.

    The GGUF's fingerprint is the first of the bases'. Sections of the manifest are `source` (where the files
    came from), `factors` (their quality), `onnx` (the graph), and `base`, which is added here; a section that
    is None is left out. Returns how the GGUF came into the bundle: `hard link` or `copy`; None where there is
    none.
    """
    placed = None
    save_bases(bases, bundle / BASIS_NAME)
    if base is not None:
        files = gguf_paths(base)
        names = [BASE_NAME]
        if len(files) > 1:
            names = [split_name(BASE_STEM, number, len(files)) for number in range(1, len(files) + 1)]
        for file, name in zip(files, names, strict=True):
            placed = place_base(file, bundle / name)
        sections["base"] = {
            "file": names[0],
            "name": base.name,
            "bytes": sum(file.stat().st_size for file in files),
            "fingerprint": bases.fingerprints[0],
        }
    manifest = {
        "format": _FORMAT,
        "tool": f"tinylora-edge {__version__}",
        "architecture": bases.factors.architecture,
        **{name: section for name, section in sections.items() if section is not None},
        "basis": _described(bases),
    }
    write_json(bundle / MANIFEST_NAME, manifest)
    return placed


@contextmanager
def new_bundle(output: Path) -> Iterator[Path]:
    """Yield a directory to fill. A rename makes it `output` at the end of the block; an error removes it.

    What a killed export left behind is replaced. ExportError: another export writes the same bundle.
    """
    refuse_existing(output)
    partial = output.parent / f".{output.name}.partial"
    try:
        with locked(partial, wait=False, keep=False):
            refuse_existing(output)  # another export may have written it before this one had the lock
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                yield partial
                sync_directory(partial)
                os.rename(partial, output)
                sync_directory(output.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except BlockingIOError:
        raise ExportError(f"another export is writing {output}: wait for its end") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise ExportError(
            f"{output} could not be written: {why}. Nothing half-made was left behind"
        ) from error


def place_base(source: Path, target: Path) -> str:
    """Put the base into a bundle and return how: `hard link` or `copy`."""
    source = source.resolve()
    with suppress(OSError):
        os.link(source, target)
        return "hard link"
    with atomic_write(target) as out, open(source, "rb") as file:
        shutil.copyfileobj(file, out, 1 << 24)
    return "copy"


def _described(bases: Bases) -> dict[str, Any]:
    factors = bases.factors
    return {
        "file": BASIS_NAME,
        "factors": factors.digest,
        "modules": len(factors.modules),
        "rank": factors.rank,
        "outputs": factors.outputs,
        "factor_dtype": factors.dtype,
        "factorization": factors.factorization,
        "projections": [projection.descriptor for projection in bases.projections],
    }
