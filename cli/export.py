"""`export`: bake a model's frozen factors into a bundle, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, BadParameter, Option

from tinylora_edge import load_bundle
from tinylora_edge.errors import TinyLoraError
from tinylora_edge.formats.gguf import whole_stem
from tinylora_edge.jsonio import write_json

from . import console, keyfiles, vectors
from . import options as opts

if TYPE_CHECKING:
    from tinylora_edge.exporters import ExportReport


def export(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        Argument(metavar="MODEL", help="A GGUF, a Hugging Face directory, a name, or org/name[@revision]."),
    ] = None,
    output: Annotated[
        Path | None,
        Option("--output", "-o", metavar="BUNDLE", help="Bundle to write. [default: the hub's name]"),
    ] = None,
    quant: Annotated[
        str | None, Option(metavar="Q", help="Quantization to download, such as q4_k_m.")
    ] = None,
    base: Annotated[
        str | None, Option(metavar="FILE", help="The GGUF to deploy, if MODEL is a directory.")
    ] = None,
    add_base: Annotated[Path | None, Option(metavar="FILE", help="Add a GGUF to MODEL, a bundle.")] = None,
    key: opts.SignerOption = None,
    target_format: Annotated[
        Literal["gguf", "onnx", "both"], Option("--format", help="Form of the base.")
    ] = "gguf",
    onnx_input: Annotated[
        Literal["default", "required"],
        Option(help="default: R is zeros if no vector is fed. required: R must be fed, for browsers."),
    ] = "default",
    onnx_precision: Annotated[
        Literal["fp32", "int8", "int4"] | None,
        Option(help="Type of the graph's weights. [default: int8 if the GGUF is quantized, else fp32]"),
    ] = None,
    rank: Annotated[int, Option(metavar="N", min=1, help="Inputs of the factors (Q).")] = 8,
    outputs: Annotated[
        int | None,
        Option(
            metavar="N",
            min=1,
            help="Outputs of the factors (P). [default: width / 8; for ONNX and for experts, --rank]",
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        Option(
            metavar="KINDS",
            help="Modules to adapt: attn_q,ffn_*; light; !PATTERN excludes. Repeatable. [default: all]",
        ),
    ] = None,
    factor_dtype: Annotated[Literal["f32", "f16"], Option(help="Type of the factors.")] = "f16",
    as_json: opts.JsonOption = False,
) -> None:
    """Bake a model's frozen factors into a bundle, once.

    The bundle holds the model (a hard link where possible), the factors of its linear layers, learned
    directions if some are shipped for the model, and a manifest. It takes vectors of every size.

    Without MODEL, export lists the models that have short names. Any org/name on the hub works too.

    \b
    Examples:
      tinylora-edge export qwen2.5-7b --quant q4_k_m
      tinylora-edge export SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2
      tinylora-edge export SmolLM2-135M-Instruct -o smollm2 --format onnx --onnx-precision int4
    """
    every = {each.name or "" for each in ctx.command.params}
    if model is None:
        _refuse(ctx, every - {"as_json"}, "needs a MODEL")
        _list_names(as_json)
        return
    if add_base is not None:
        others = every - {"model", "add_base", "key", "as_json"}
        _refuse(ctx, others, "makes no sense together with --add-base")
        _add_base(Path(model), add_base, key, as_json)
        return
    _refuse(ctx, {"key"}, "goes with --add-base")
    if target_format == "gguf":
        _refuse(ctx, {"onnx_input", "onnx_precision"}, "goes with --format onnx or both")

    from tinylora_edge.exporters import Export, ExportSettings, default_name, refuse_existing, resolve
    from tinylora_edge.exporters.onnx import check_builder

    if output is None:
        if (name := default_name(model)) is None:
            raise BadParameter("name the bundle to write: -o BUNDLE", ctx=ctx)
        output = Path(name)
    refuse_existing(output)  # before anything is asked of the hub
    graph, deployed = target_format != "gguf", target_format != "onnx"
    if graph:
        check_builder()
    settings = ExportSettings(
        rank=rank,
        outputs=outputs,
        targets=tuple(part.strip() for each in targets or () for part in each.split(",") if part.strip()),
        factor_dtype=factor_dtype,
    )

    def say(what: str, where: object, size: int) -> None:
        if console.stderr().is_terminal:  # where the hub's client shows its progress
            console.note(f"{what} from {where}: {console.megabytes(size)}")

    files = resolve(model, base=base, quant=quant, deployed=deployed, graph=graph, say=say)
    start = time.perf_counter()
    planned = Export(
        files.model,
        output,
        base=files.base,
        target=target_format,
        flavour=onnx_input,
        precision=onnx_precision,
        settings=settings,
        provenance=files.provenance,
    )
    with module_progress(len(planned.modules), planned.bytes) as (step, stage):
        report = planned.run(step, stage)
    _say_what_was_made(report, start, planned.base, files.provenance, as_json)


def _say_what_was_made(
    report: ExportReport, start: float, base: Path, source: dict[str, Any] | None, as_json: bool
) -> None:
    """Compare the answers of both forms, if there are both, and print what an export made."""
    output, bases, quality, placed = report.output, report.bases, report.quality, report.base_placed
    alike, seconds = _measure_parity(report), time.perf_counter() - start
    if names := quality["unconverged"]:
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        worst = f"a residual above the tolerance (worst {quality['worst_residual']:.2g})"
        console.warn(f"{len(names)} of {len(bases.factors.modules)} modules kept {worst}: {some}")
    record: dict[str, Any] = {"bundle": str(output), "seconds": round(seconds, 3)}
    record |= {**vectors.factors_facts(bases), **quality, "base": placed}
    record |= {"source": source} if source else {}
    if report.onnx is not None:
        record["onnx"] = {**report.onnx, **({"answers": alike} if alike else {})}
    wrote = f"exported {base.name} to {output} in {seconds:.1f} s"
    console.report(record, as_json, wrote, rows=console.flat(record))
    find = output, "brevity", "-o", "brief.bin"
    if placed is not None and not as_json:  # `train` reads the GGUF, which an export for ONNX alone lacks
        console.next_command("train", *find)
    if (bases.projections or placed is None) and not as_json:  # `tune` gains little in random directions
        console.next_command("tune", *find)


def _list_names(as_json: bool) -> None:
    from tinylora_edge.exporters.hub import load_catalog

    catalog = load_catalog().values()
    rows = []
    for model in catalog:
        quants = dict.fromkeys([model.default, *model.quants] if model.default else model.quants)
        sizes = ", ".join(f"{quant} {console.megabytes(model.quants[quant])}" for quant in quants)
        licence = f"{model.license}{' (weights gated)' if model.gated else ''}"
        rows.append((model.name, f"{model.parameters / 1e9:.3g} B, {licence}; --quant {sizes}"))
    console.report([asdict(model) for model in catalog], as_json, rows=rows)


@contextmanager
def module_progress(modules: int, size: int) -> Iterator[tuple[Callable[[str, int], None], console.Show]]:
    """Show the progress of an export; yield what to call after each module, and what shows later stages."""
    done = [0, 0]
    with console.progress("reading the model", size) as show:

        def step(module: str, size: int) -> None:
            done[0], done[1] = done[0] + 1, done[1] + size
            show(f"{done[0]}/{modules} modules, {console.megabytes(done[1])}", done=done[1])

        yield step, show


def _add_base(bundle: Path, base: Path, key: Path | None, as_json: bool) -> None:
    from tinylora_edge.exporters import add_base

    signer = None if key is None else keyfiles.signer(key)
    with console.progress(f"comparing the weights of {base} with the factors"):
        bases, worst = add_base(bundle, base, signer=signer)
    facts = {"bundle": str(bundle), "base": str(base), "factors": bases.factors.digest, "agreement": worst}
    console.report(
        facts | {"fingerprints": list(bases.fingerprints)},
        as_json,
        f"listed {base} in {bundle}: its weights are at most {worst:.2g} away from the factors",
        f"to load it, put the basis beside it: {base.with_name(f'{whole_stem(base)}.basis.gguf')}",
    )


def _measure_parity(report: ExportReport) -> dict[str, Any] | None:
    """Compare the answers of graph and GGUF, if there are both, and write the result into the manifest."""
    if report.onnx is None or report.base_placed is None:
        return None
    from tinylora_edge.eval import measure_parity

    try:
        with console.progress("comparing the answers of both forms"):
            alike = measure_parity(report.output)
    except TinyLoraError as error:
        console.warn(f"the answers of graph and GGUF were not compared: {error}")
        return None
    found = load_bundle(report.output)
    assert found.manifest_path is not None
    onnx = found.manifest["onnx"] | {"answers": alike}
    write_json(found.manifest_path, found.manifest | {"onnx": onnx})
    return alike


def _refuse(ctx: typer.Context, names: set[str], why: str) -> None:
    for each in ctx.command.params:
        source = ctx.get_parameter_source(each.name or "")
        if each.name in names and source is not None and source.name == "COMMANDLINE":
            raise BadParameter(f"{each.opts[0]} {why}", ctx=ctx)
