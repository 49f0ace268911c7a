"""Export for ONNX Runtime: a decoder graph with the basis in it, and the vector as an input.

`Baking` extends a graph that is there: it matches modules to nodes, checks that weights and factors agree,
adds the side path and writes a new directory; the original is never changed. `OnnxExport` is the whole way
from a model to a bundle, the graph built where none is given.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ..._system import atomic_write, sync_directory
from ...basis import Basis
from ...errors import ExportError
from ...formats.bundle import BASIS_NAME, MANIFEST_NAME, ONNX_NAME
from ...formats.onnx_adapter import to_adapter
from ...formats.onnx_graph import DEFAULT, GENAI_NAME, MODEL_NAME, REQUIRED, MetadataKey
from ...formats.side_tensors import load_basis, save_basis
from ...vector import MicroVector
from ..bundle_writer import new_bundle, place_gguf, refuse_existing, write_manifest
from ..factors.checkpoint import factorized
from ..factors.factorize import Progress, Quality, basis_of, gather, one_blas_thread
from ..manifest import describe, describe_gguf
from ..settings import Settings
from ..source import Source
from . import builder
from .align import Heads, align
from .match import Site, match
from .model import OnnxModel, copy_folder, find_model, import_onnx, nbytes
from .side_path import add_side_path, refuse_baked
from .weights import Weight, fingerprint

ADAPTER_NAME = "zeros.onnx_adapter"
FLAVOURS = (DEFAULT, REQUIRED)
PRECISIONS = builder.PRECISIONS

Stage = Callable[[str], None]
"""Called with what begins now, in words."""


@dataclass(frozen=True)
class BakeReport:
    """What baking made of a graph.

    Attributes:
        model: the model file that was written.
        fingerprint: of the base graph.
        nodes: of the base graph.
        added: nodes of the side path.
        sites: nodes that it extends.
        agreement: worst distance between the factors and the graph's weights.
        flavour: `default` or `required`.
    """

    model: Path
    fingerprint: str
    nodes: int
    added: int
    sites: int
    agreement: float
    flavour: str


@dataclass(frozen=True)
class OnnxReport:
    """What an export for ONNX Runtime made.

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


def bake(
    graph: str | PathLike[str],
    basis: Basis,
    output: str | PathLike[str],
    *,
    flavour: str = DEFAULT,
    heads: Heads = lambda kind: None,
    move: bool = False,
) -> BakeReport:
    """Write a copy of an ONNX model with a basis in it.

    External data is copied, never loaded; the peak of memory is the graph without its data, the factors, and
    one weight that is looked at.

    Args:
        graph: a directory with `model.onnx`, or the model file. Only read.
        basis: what goes in.
        output: an existing, empty directory.
        flavour: `default`: the input `tinylora_v` is zeros unless it is fed; `required`: it has to be fed.
        heads: of q and k, for models whose rows are ordered otherwise than in the GGUF.
        move: take the external data from the graph's directory instead of copying it.

    Raises:
        MissingExtraError: the onnx package is not installed.
        ExportError: the graph or its data is missing or damaged, or was baked already.
        UnsupportedModelError: a module has no node, or one that cannot be extended.
        BaseMismatchError: the graph's weights are not those of the basis.
    """
    if flavour not in FLAVOURS:
        raise ExportError(f"unknown flavour {flavour!r} of the input: choose one of {', '.join(FLAVOURS)}")
    output = Path(output)
    model = OnnxModel(find_model(Path(graph)))
    refuse_baked(model)
    if MODEL_NAME in model.data_files:
        raise ExportError(f"{model.path} keeps its data in a file called {MODEL_NAME}: rename one of the two")
    genai = _genai_config(model.folder)
    nodes = len(model.graph.node)
    sites = match(model, basis)
    ordered, agreement = align(model, basis, sites, heads)
    weights = _weights_by_module(basis, sites)
    mark = fingerprint(model, basis.architecture, weights)
    added = add_side_path(model, basis, sites, ordered, flavour)
    _describe(model, basis, mark, weights, flavour)
    report = BakeReport(output / MODEL_NAME, mark, nodes, added, len(sites), agreement, flavour)
    model.save(output / MODEL_NAME)
    copy_folder(model.folder, output, without={model.path, *model.data_files.values()})
    if genai is not None:
        (output / GENAI_NAME).write_bytes(genai)
    with atomic_write(output / ADAPTER_NAME) as file:
        file.write(to_adapter(MicroVector.zeros(basis), basis))
    model.copy_data(output, move=move)
    sync_directory(output)
    return report


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
        provenance: where the files came from, for the manifest: `Resolved.provenance`.

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
        settings: Settings | None = None,
        workers: int | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        for value, known, what in ((flavour, FLAVOURS, "flavour"), (precision, PRECISIONS, "precision")):
            if value not in known:
                raise ExportError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")
        import_onnx()
        self.settings, self._workers = settings or Settings(), workers
        self._provenance = provenance
        self.output = Path(output)
        refuse_existing(self.output)
        self._flavour, self._precision, self._with_gguf = flavour, precision, with_gguf
        self._graph = Path(graph) if graph is not None else None
        if self._graph is None:
            builder.check_packages()
        else:
            find_model(self._graph)
        self._source = Source(Path(model), Path(base) if base is not None else None, needs_gguf=with_gguf)
        self.base = self._source.base or self._source.model
        if with_gguf:
            self._source.warn()
        self.modules, self.tying = self._source.plan(self.settings)
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
        nbytes, how = self._source.nbytes, self._source.work(self.settings)
        with (
            factorized(self.output, how, self.modules, self._workers, nbytes, progress) as journal,
            one_blas_thread(),
            new_bundle(self.output) as partial,
        ):
            found, marks = journal.read(), self._source.fingerprints(self.modules)
            basis = basis_of(found, self.modules, self.tying, self.settings, self._source.architecture, marks)
            quality = gather(found, self.modules)
            work = partial / "work"
            work.mkdir()
            graph, made_by = self._graph, str(self._graph)
            if graph is None:
                stage(f"building the graph ({self._precision})")
                built = builder.build(self._source.model, work, self._precision)
                graph, made_by = built.folder, built.made_by
            stage("baking the factors in")
            folder = partial / ONNX_NAME
            folder.mkdir()
            baked = bake(
                graph,
                basis,
                folder,
                flavour=self._flavour,
                heads=self._source.heads,
                move=self._graph is None,
            )
            shutil.rmtree(work)
            basis = replace(basis, base_fingerprints=(*basis.base_fingerprints, baked.fingerprint))
            save_basis(basis, partial / BASIS_NAME)
            sections: dict[str, Any] = {}
            placed = None
            if self._with_gguf and self._source.base is not None:
                placed = place_gguf(self._source.base, partial)
                sections["base"] = describe_gguf(self._source.base, basis.base_fingerprints[0])
            precision = self._precision if self._graph is None else None
            sections["onnx"] = _section(baked, made_by, precision)
            manifest = describe(
                basis, quality, self._source.kind, self.settings, self._provenance, **sections
            )
            write_manifest(partial / MANIFEST_NAME, manifest)
        baked = replace(baked, model=self.output / ONNX_NAME / MODEL_NAME)
        basis = load_basis(self.output / BASIS_NAME)
        return OnnxReport(self.output, basis, quality, placed, baked, made_by, precision)


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


def _weights_by_module(basis: Basis, sites: list[Site]) -> list[tuple[str, list[Weight]]]:
    homes: dict[str, list[tuple[int, Weight]]] = {module: [] for module in basis.modules}
    for site in sites:
        for part in site.parts:
            homes[part.module].append((part.row, site.linear.weight))
    return [
        (module, [weight for _, weight in sorted(several, key=lambda pair: pair[0])])
        for module, several in homes.items()
    ]


def _weights_entry(weights: list[tuple[str, list[Weight]]]) -> str | None:
    """What a fingerprint covers, for a device that computes it again: JSON, an entry a module in order.

    An entry has, for each node that computes the module, `k`, `n` and its `tensors`, each [initializer,
    ONNX element type, bytes]. None where a weight is kept in typed fields of the protocol buffer, whose
    bytes cannot be read without the onnx package.
    """
    entries = []
    for _, several in weights:
        nodes = []
        for weight in several:
            n_out, n_in = weight.shape
            tensors = weight.mark()
            if any(t.data_location != t.EXTERNAL and not t.HasField("raw_data") for t in tensors):
                return None
            listed = [[t.name, t.data_type, nbytes(t)] for t in tensors]
            nodes.append({"k": n_in, "n": n_out, "tensors": listed})
        entries.append(nodes)
    return json.dumps(entries, separators=(",", ":"))


def _describe(
    model: OnnxModel, basis: Basis, mark: str, weights: list[tuple[str, list[Weight]]], flavour: str
) -> None:
    """Put the basis, but for its factors, into the model's metadata."""
    values = {
        MetadataKey.VERSION: "1",
        MetadataKey.DIGEST: basis.digest,
        MetadataKey.FINGERPRINT: mark,
        MetadataKey.ARCHITECTURE: basis.architecture,
        MetadataKey.RANK: str(basis.rank),
        MetadataKey.U: str(basis.u),
        MetadataKey.GROUPS: str(basis.groups),
        MetadataKey.SEED: str(basis.seed),
        MetadataKey.PROJECTION: basis.projection,
        MetadataKey.FACTORIZATION: basis.factorization,
        MetadataKey.TYING: basis.scheme,
        MetadataKey.TYING_GROUPS: json.dumps(basis.tying.tolist()),
        MetadataKey.MODULES: json.dumps(list(basis.modules)),
        MetadataKey.FLAVOUR: flavour,
    }
    if (listed := _weights_entry(weights)) is not None:
        values[MetadataKey.WEIGHTS] = listed
    for key, value in values.items():
        entry = model.proto.metadata_props.add()
        entry.key, entry.value = key.value, value


def _genai_config(folder: Path) -> bytes | None:
    """onnxruntime-genai's configuration, naming the model file that a bundle has; None where there is none.

    Raises:
        ExportError: it is damaged.
    """
    path = folder / GENAI_NAME
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text("utf-8"))
        config["model"]["decoder"]["filename"] = MODEL_NAME
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is damaged: {error!r}. Build the graph again") from None
    return json.dumps(config, indent=4).encode()


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
