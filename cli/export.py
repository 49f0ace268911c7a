"""`export`: bake a model's frozen factors into a bundle, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import Bundle
from ..formats.gguf import whole_stem
from ..formats.onnx_graph import DEFAULT, REQUIRED
from ..formats.signatures import signature_path
from . import console, downloads, export_report
from .options import JsonOption


class ExportFormat(StrEnum):
    """Engines that can be exported for."""

    gguf = "gguf"
    onnx = "onnx"
    both = "both"


class OnnxInput(StrEnum):
    """Flavours of a graph's input, as `tinylora_edge.exporters.onnx.FLAVOURS`, the default first."""

    default = DEFAULT
    required = REQUIRED


class OnnxPrecision(StrEnum):
    """Precisions of a graph, as `tinylora_edge.exporters.onnx.PRECISIONS`, the default first."""

    fp32 = "fp32"
    int4 = "int4"


class FactorsFrom(StrEnum):
    """Sources of factors, as `tinylora_edge.exporters.find` takes them."""

    gguf = "gguf"
    weights = "weights"


class Tying(StrEnum):
    """Schemes of tying, as `tinylora_edge.projection.SCHEMES`, the default first."""

    tiled = "tiled"
    structured = "structured"
    full = "full"


class FactorDtype(StrEnum):
    """Types that factors are stored in."""

    f32 = "f32"
    f16 = "f16"


class Projection(StrEnum):
    """Where projections come from."""

    auto = "auto"
    random = "random"
    learned = "learned"


def export(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file, a Hugging Face directory, a name (tinylora-edge models), or org/name on the "
            "hub, with @revision where that matters. With --add-base: the bundle.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="BUNDLE",
            help="The directory to write. It must not exist. [default: the name, where MODEL is one]",
        ),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(
            metavar="Q", help="Quantization of a model from the hub: q4_k_m. [default: the model's]"
        ),
    ] = None,
    factors_from: Annotated[
        FactorsFrom | None,
        typer.Option(
            help="What the factors are taken from. [default: gguf, the deployed file itself; weights where "
            "a graph is built or --base given]"
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The GGUF that is deployed, where MODEL is original weights; or org/name."
        ),
    ] = None,
    add_base: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="List FILE, another quantization of the model, in an existing bundle."
        ),
    ] = None,
    target_format: Annotated[
        ExportFormat, typer.Option("--format", help="Engine to export for.")
    ] = ExportFormat.gguf,
    onnx: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The ONNX model to bake the factors into. [default: one is built from MODEL]"
        ),
    ] = None,
    onnx_input: Annotated[
        OnnxInput,
        typer.Option(
            help="Whether the graph's vector is zeros by default (Python, genai, adapters) or has to be fed "
            "(browsers)."
        ),
    ] = OnnxInput.default,
    onnx_precision: Annotated[
        OnnxPrecision, typer.Option(help="Weights of an ONNX graph that is built.")
    ] = OnnxPrecision.fp32,
    rank: Annotated[int, typer.Option(metavar="N", min=1, help="Rank r of the factors.")] = 2,
    u: Annotated[
        int, typer.Option(metavar="N", min=1, help="Entries of the vector that one module reads.")
    ] = 1,
    groups: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Groups G of modules that share a row. [default: 13; 1 with --tying full]",
        ),
    ] = None,
    tying: Annotated[
        Tying,
        typer.Option(help="How modules are grouped: tiled by depth, structured by kind, or all in one."),
    ] = Tying.tiled,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KINDS",
            help="Modules to adapt: kinds, names or patterns (attn_q,ffn_*), or light, the attention of the "
            "first two thirds of the blocks; !PATTERN leaves out. Repeatable. [default: all]",
        ),
    ] = None,
    factor_dtype: Annotated[
        FactorDtype, typer.Option(help="Type that factors are stored in.")
    ] = FactorDtype.f32,
    projection: Annotated[
        Projection,
        typer.Option(
            help="random: the paper's, from the seed. learned: 13 dense directions, shipped for "
            "SmolLM2-135M-Instruct; tinylora-edge learn finds those of another model. auto: learned where "
            "they are shipped, unless u, groups or tying is given."
        ),
    ] = Projection.auto,
    as_json: JsonOption = False,
) -> None:
    """Bake a model's frozen factors into a bundle, once.

    The bundle holds the model (a hard link where possible), the factors of its linear layers, and a
    manifest. A vector of groups x u numbers then personalizes it.

    \b
    Examples:
      tinylora-edge export qwen2.5-7b --quant q4_k_m
      tinylora-edge export SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2
      tinylora-edge export SmolLM2-135M-Instruct -o smollm2 --format onnx --onnx-precision int4
    """
    if add_base is not None:
        _refuse_options(ctx, "--add-base", keep=("model", "add_base", "as_json"))
        _add_base(Path(model), add_base, as_json)
        return
    if target_format is ExportFormat.gguf:
        _refuse_given(ctx, ("onnx", "onnx_input", "onnx_precision"), "goes with --format onnx or both")
    if onnx is not None:
        _refuse_given(ctx, ("onnx_precision",), "is that of a graph that is built, not of --onnx DIR")

    from ..exporters import Export, ExportSettings, find, refuse_existing
    from ..exporters.onnx import check_graph

    if output is not None:
        refuse_existing(output)  # before anything is asked of the hub
    if target_format is not ExportFormat.gguf:
        check_graph(onnx)
    found = find(
        model,
        base=base,
        quant=quant,
        factors_from=factors_from.value if factors_from else None,
        deployed=target_format is not ExportFormat.onnx,
        graph=target_format is not ExportFormat.gguf and onnx is None,
    )
    if output is None:
        if found.name is None:
            raise typer.BadParameter("say where the bundle goes: -o BUNDLE", ctx=ctx)
        output = Path(found.name)
        refuse_existing(output)
    if projection is Projection.auto and _given(ctx, "u", "groups", "tying"):
        projection = Projection.random  # also where what was given is what it would be
    settings = ExportSettings(
        rank=rank,
        u=u,
        groups=groups,
        tying=tying.value,
        targets=split_targets(targets or []),
        factor_dtype=factor_dtype.value,
        projection=projection.value,
    )
    files = downloads.fetch(found)
    start = time.perf_counter()
    planned = Export(
        files.model,
        output,
        base=files.base,
        target=target_format.value,
        graph=onnx,
        flavour=onnx_input.value,
        precision=onnx_precision.value,
        settings=settings,
        provenance=files.provenance,
    )
    with module_progress(len(planned.modules), planned.bytes) as (step, stage):
        report = planned.run(step, stage)
    seconds = time.perf_counter() - start
    export_report.print_report(planned.base.name, report, files.provenance, seconds, as_json)


@contextmanager
def module_progress(modules: int, size: int) -> Iterator[tuple[Callable[[str, int], None], console.Show]]:
    """Show how far an export is.

    Args:
        modules: how many there are.
        size: bytes of their weights.

    Yields what counts a module with its bytes, and what says what comes after the last one.
    """
    done = [0, 0]
    with console.progress("reading the model", size) as show:

        def step(module: str, size: int) -> None:
            done[0], done[1] = done[0] + 1, done[1] + size
            show(f"{done[0]}/{modules} modules, {console.megabytes(done[1])}", done=done[1])

        yield step, show


def split_targets(given: list[str]) -> tuple[str, ...]:
    """Return the targets of repeated, comma-separated options."""
    return tuple(target for item in given for part in item.split(",") if (target := part.strip()))


def _add_base(bundle: Path, base: Path, as_json: bool) -> None:
    from ..exporters import add_base

    found = Bundle.find(bundle)
    before = found.basis.base_fingerprints
    with console.progress(f"comparing the weights of {base} with the factors"):
        basis, worst = add_base(bundle, base)
    if basis.base_fingerprints != before and signature_path(found).exists():
        console.warn(f"the signature of {bundle} is of the basis before: tinylora-edge sign makes a new one")
    if as_json:
        facts: dict[str, Any] = {
            "bundle": str(bundle),
            "base": str(base),
            "digest": basis.digest,
            "agreement": worst,
            "fingerprints": list(basis.base_fingerprints),
        }
        console.print_json(facts)
        return
    console.prose(f"listed {base} in {bundle}: its weights are at most {worst:.2g} away from the factors")
    console.facts(
        [("digest", f"{basis.digest} (unchanged)"), ("bases listed", str(len(basis.base_fingerprints)))]
    )
    console.prose(f"to load it, put the basis beside it: {base.with_name(f'{whole_stem(base)}.basis.gguf')}")


def _refuse_options(ctx: typer.Context, option: str, *, keep: tuple[str, ...]) -> None:
    others = tuple(parameter.name or "" for parameter in ctx.command.params if parameter.name not in keep)
    _refuse_given(ctx, others, f"makes no sense together with {option}")


def _refuse_given(ctx: typer.Context, names: tuple[str, ...], why: str) -> None:
    for option in _given(ctx, *names):
        raise typer.BadParameter(f"{option} {why}", ctx=ctx)


def _given(ctx: typer.Context, *names: str) -> list[str]:
    """Return the options of these parameters that the command line has."""
    sources = {
        each.opts[0]: ctx.get_parameter_source(each.name or "")
        for each in ctx.command.params
        if each.name in names
    }
    return [
        option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"
    ]
