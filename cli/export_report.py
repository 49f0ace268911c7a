"""Reports of what an export made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..projection import EXPLICIT
from . import console, downloads, vectors

if TYPE_CHECKING:
    from ..basis import Basis
    from ..exporters import ExportReport, Quality

_DESCRIBED = {
    "learned": "learned, shipped for this model (--projection random: the paper's)",
    "random": "random, the paper's",
}


def print_report(
    base: str,
    report: ExportReport,
    provenance: dict[str, Any] | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Print what an export made."""
    basis, quality = report.basis, report.quality
    wire = vectors.sizes(basis.size)
    _warn_unconverged(quality, len(basis.modules))
    if as_json:
        record: dict[str, Any] = {
            "bundle": str(report.output),
            "seconds": round(seconds, 3),
            "digest": basis.digest,
            "architecture": basis.architecture,
            "modules": len(basis.modules),
            "rank": basis.rank,
            "u": basis.u,
            "groups": basis.groups,
            "values": basis.size,
            "tying": basis.scheme,
            "projection": _projections(basis),
            "seed": basis.seed,
            "factorization": basis.factorization,
            "worst_residual": quality.residual,
            "worst_residual_module": quality.residual_module,
            "unconverged": quality.unconverged,
            "agreement": quality.agreement,
            "base": {
                "placed": report.base_placed,
                "bytes": None if report.base_placed is None else _base_bytes(report),
                "fingerprints": list(basis.base_fingerprints),
            },
            "vector_bytes": wire,
        }
        if provenance is not None:
            record["source"] = provenance
        if (onnx := _onnx_facts(report)) is not None:
            record["onnx"] = onnx
        console.print_json(record)
        return
    rows = [
        ("digest", basis.digest),
        ("modules", f"{len(basis.modules)} ({', '.join(basis.kinds())})"),
        (
            "vector",
            f"{vectors.shape(basis.size, basis.groups, basis.u)}, tying {basis.scheme}",
        ),
        ("projections", _DESCRIBED[_projections(basis)]),
        (
            "on the wire",
            ", ".join(f"{wire[dtype]['crc-32']} bytes in {dtype}" for dtype in wire) + ", framed",
        ),
        ("worst residual", f"{quality.residual:.2e} ({quality.residual_module})"),
    ]
    rows += downloads.sources(provenance)
    placed = report.base_placed
    if placed is not None:
        size = console.megabytes(_base_bytes(report))
        rows.append(("base.gguf", f"a copy of {size}" if placed == "copy" else placed))
    if quality.agreement is not None:
        rows.append(("distance to base", f"{quality.agreement:.2e} (worst module, {base})"))
    if (onnx := _onnx_facts(report)) is not None:
        precision = f"{onnx['precision']}, " if onnx["precision"] else ""
        rows += [
            ("onnx/model.onnx", f"{precision}{console.megabytes(onnx['bytes'])}, from {onnx['graph']}"),
            (
                "side path",
                f"{onnx['nodes_added']} nodes beside {onnx['nodes']}, input {onnx['input']}",
            ),
            ("distance to graph", f"{onnx['agreement']:.2e} (worst module)"),
        ]
    console.prose(f"exported {base} to {report.output} in {seconds:.1f} s")
    console.facts(rows)
    _say_next(report, basis)


def _say_next(report: ExportReport, basis: Basis) -> None:
    """Print the commands that find a vector, the better way first."""
    bundle = report.output
    find = (bundle, "--task", "brevity", "-o", "brief.bin")
    learned = _projections(basis) == "learned"
    console.say("next:")
    if report.base_placed is not None:  # PyTorch reads the GGUF, which an export for ONNX alone lacks
        if not learned and basis.size <= 13:  # more random numbers hold more
            learn = ("learn", bundle, "-o", bundle.with_name(f"{bundle.name}-learned"))
            console.say(f"  {console.command(*learn)}  # first: directions that hold more")
        console.say(f"  {console.command('train', *find)}  # with PyTorch")
    if learned or report.base_placed is None:  # 13 random numbers are too few for what `tune` can see
        console.say(f"  {console.command('tune', *find)}  # without PyTorch, on a device too")


def _projections(basis: Basis) -> str:
    """Where the projections of an export come from: `random` or `learned`."""
    return "learned" if basis.projection == EXPLICIT else "random"


def _base_bytes(report: ExportReport) -> int:
    """Bytes of the GGUF in a bundle, whole or split."""
    return sum(path.stat().st_size for path in report.output.glob("base*.gguf"))


def _onnx_facts(report: ExportReport) -> dict[str, Any] | None:
    baked = report.baked
    if baked is None:
        return None
    folder = baked.model.parent
    return {
        "folder": str(folder),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "graph": report.made_by,
        "precision": report.precision,
        "input": baked.flavour,
        "nodes": baked.nodes,
        "nodes_added": baked.added,
        "nodes_extended": baked.sites,
        "agreement": baked.agreement,
        "fingerprint": baked.fingerprint,
    }


def _warn_unconverged(quality: Quality, modules: int) -> None:
    """Print a warning about modules that met the bound on passes before the tolerance, if there are any."""
    names = quality.unconverged
    if names:
        console.warn(
            f"{len(names)} of {modules} modules kept a residual above the tolerance (worst "
            f"{quality.residual:.2g}): {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        )
