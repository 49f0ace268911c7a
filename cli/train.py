"""`train`: find a vector on a host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import MicroVector, load_bundle
from ..documents import read_json
from . import console, figures, vectors
from .figures import ExamplesOption, SystemOption
from .options import (
    BundleArgument,
    DataArgument,
    DropDuplicatesOption,
    EvaluateOption,
    JsonOption,
    RewardOption,
    RunFrameOption,
    load_data,
)
from .report import write_report


def train(
    bundle: BundleArgument,
    data: DataArgument,
    output: RunFrameOption,
    reward: RewardOption = None,
    drop_duplicates: DropDuplicatesOption = False,
    method: Annotated[Literal["grpo", "sft"], typer.Option(help="By a reward, or on answers.")] = "grpo",
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps.")] = 40,
    prompts: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts a step.")] = 8,
    samples: Annotated[int, typer.Option(metavar="N", min=2, help="Completions a prompt.")] = 8,
    lr: Annotated[
        float | None, typer.Option(metavar="X", help="Step size. [default: one that suits]")
    ] = None,
    rank: Annotated[int | None, typer.Option(metavar="K", help="All of R at this rank. [default: 2]")] = None,
    numbers: Annotated[int | None, typer.Option(metavar="N", help="So many numbers, such as 13.")] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A vector to begin with, of any size up to this one.")
    ] = None,
    system: SystemOption = None,
    examples: ExamplesOption = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of everything.")] = 0,
    weights: Annotated[Path | None, typer.Option(metavar="DIR", help="Hugging Face weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Rehearse, to keep what else the model can.")] = False,
    evaluate: EvaluateOption = True,
    as_json: JsonOption = False,
) -> None:
    """Train a vector for a task with GRPO, and write it as a frame.

    Beside FILE it leaves FILE.json (task, settings, curve, held-out figures) and a report, FILE.html. Ctrl-C
    saves the state.

    A vector is all entries of R at a rank, 840 for SmolLM2 at rank 2; with --numbers 13 it is in directions
    that the bundle has learned, or the paper's.

    With --system or --examples the vector is trained behind a prompt, and belongs to it.

    \b
    Examples:
      tinylora-edge train out/demo list-lookup -o lookup.bin
      tinylora-edge train out/demo brevity --numbers 13 -o brief.bin
      tinylora-edge train out/demo brevity --rank 8 --start brief.bin -o briefer.bin
      tinylora-edge train out/demo formats --system "Answer in JSON alone." --examples 2 -o json.bin
    """
    from ..train import Options, grown
    from ..train import train as run

    options = Options(
        method=method,
        steps=steps,
        prompts=prompts,
        samples=samples,
        rank=rank,
        numbers=numbers,
        lr=lr,
        seed=seed,
        keep=keep,
        weights=None if weights is None else str(weights),
        evaluate=evaluate,
        drift=figures.DRIFT_PROMPTS if evaluate else 0,
    )
    if start is not None:
        bases = load_bundle(bundle).bases
        vector = MicroVector.from_bytes(vectors.read(str(start)), bases)
        options = replace(options, start=grown(vector, bases, options.basis(bases)))
    loaded = load_data(data, reward=reward, drop_duplicates=drop_duplicates, seed=seed)
    loaded = figures.preamble(loaded, system, examples).before_task(loaded)
    with training_progress(steps) as show:
        outcome = run(bundle, loaded, output, options=options, resume=resume, report=show)
    if outcome.result.stopped == "interrupted":
        console.note(
            f"interrupted after step {outcome.result.steps}: the state is saved, go on with --resume"
        )
        raise typer.Exit(130)
    report = write_report(outcome.path)
    record = read_json(outcome.path.with_name(f"{outcome.path.name}.json"))
    if as_json:
        console.print_json({"file": str(outcome.path), "report_file": str(report), **record})
        return
    result = outcome.result
    console.prose(
        f"wrote {outcome.path} ({outcome.path.stat().st_size} bytes), the vector of step "
        f"{result.best_step} of {result.steps}: held back {result.start_score:.3f} -> {result.best_score:.3f}"
    )
    figures.show(record, ("report", str(report)))


@contextmanager
def training_progress(steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show reward, validation and speed of a run, and how far it is."""
    known: dict[str, str] = {}
    with console.progress("loading, and scoring the start", steps) as bar:

        def show(metrics: dict[str, Any]) -> None:
            for key, name in (("reward", "reward"), ("validation", "held back")):
                if key in metrics:
                    known[key] = f"{name} {metrics[key]:.2f}"
            event = metrics.get("event")
            if event == "start":
                bar(f"{known.get('validation', '')}  drawing the first answers")
            elif event == "back-off":
                console.warn(
                    f"validation fell to {metrics['validation']:.3f} from {metrics['best']:.3f}: went back "
                    f"to the best vector and halved the step size to {metrics['lr']:.2g}"
                )
            elif event == "measuring":
                bar(f"measuring: {metrics['what']}", done=metrics["done"], total=metrics["total"])
            elif event == "stopping":
                console.acknowledge_interrupt()
            if event is not None:
                return
            parts = [f"step {metrics['step']}/{steps}", *known.values()]
            if metrics["step"] >= steps:
                parts.append("measuring on held-out prompts")
            elif "draw_s" in metrics:
                seconds = metrics["draw_s"] + metrics.get("learn_s", 0.0)
                parts.append(f"{metrics['tokens'] / max(seconds, 1e-9):.0f} tokens/s")
            bar("  ".join(parts), done=metrics["step"])

        yield show
