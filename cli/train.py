"""`train`: find a vector on a host."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import Bundle, MicroVector, TinyLoraError
from ..vector import FIRST_SEQUENCE
from . import console, training, vectors
from .against import Against, progress
from .figures import DRIFT_PROMPTS, print_drift, print_figures
from .options import (
    AnchorOption,
    DriftOption,
    Dtype,
    DtypeOption,
    JsonOption,
    RewardOption,
    RunFrameOption,
    SequenceOption,
    TaskOption,
)
from .preambles import PreambleOption, ShownOption, SystemOption, behind, say_behind
from .report.plots import check_plots
from .report.training import TrainingReport
from .standings import print_prompt

if TYPE_CHECKING:
    from ..runtime import Duel, PromptSearch
    from ..tasks import Task
    from ..train.options import Outcome


class Method(StrEnum):
    """Ways in which v is trained."""

    grpo = "grpo"
    sft = "sft"


class TrainingEngine(StrEnum):
    """Training loops to choose from."""

    own = "own"
    trl = "trl"


class RolloutEngine(StrEnum):
    """Engines that draw completions."""

    llama = "llama"
    hf = "hf"


def train(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to train for.")],
    task: TaskOption,
    output: RunFrameOption,
    reward: RewardOption = None,
    method: Annotated[Method, typer.Option(help="grpo, or cross-entropy on given answers.")] = Method.grpo,
    engine: Annotated[
        TrainingEngine, typer.Option(help="Our loop, or TRL's on many GPUs.")
    ] = TrainingEngine.own,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps.")] = 40,
    prompts: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts a step.")] = 8,
    samples: Annotated[int, typer.Option(metavar="N", min=2, help="Completions a prompt.")] = 8,
    lr: Annotated[
        float | None, typer.Option(metavar="X", help="Step size of Adam on v. [default: measured]")
    ] = None,
    trial: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X",
            help="Multiple of the step size to try for 5 steps; give several, and the best is taken. "
            "For many more numbers than 13.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A vector to begin with, such as a distilled prompt. [default: the base]"
        ),
    ] = None,
    system: SystemOption = None,
    examples: ShownOption = None,
    preamble: PreambleOption = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of everything.")] = 0,
    rollouts: Annotated[RolloutEngine, typer.Option(help="Engine that draws.")] = RolloutEngine.llama,
    half_copy: Annotated[
        bool | None,
        typer.Option(
            "--half-copy/--no-half-copy", help="Draw with a 16-bit copy of the base. [default: if faster]"
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hugging Face weights to learn on. [default: the base]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads. [default: every core]")
    ] = None,
    dtype: DtypeOption = Dtype.fp32,
    sequence: SequenceOption = FIRST_SEQUENCE,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    anchor: AnchorOption = 0.0,
    evaluate: Annotated[bool, typer.Option(help="Measure on held-out prompts at the end.")] = True,
    drift: DriftOption = True,
    against: Annotated[
        Against | None,
        typer.Option(
            help="The prompt to measure beside it: of a quick search, of a thorough one, or none. "
            "[default: prompt; none behind a prompt of its own]",
            show_default=False,
        ),
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Draw the report's figures into FILE.png, too: pip extra plot.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a vector for a task with GRPO, and write it as a frame.

    Beside FILE it leaves FILE.json (task, settings, curve, held-out figures) and FILE.html, a report of the
    same to look at. Ctrl-C saves the state. At the end a prompt for the same task is measured beside the
    vector; eval can do that with more of them.

    With --system, --examples or --preamble the vector is trained behind a prompt, and belongs to it: its gain
    is what it adds to that prompt.

    \b
    Examples:
      tinylora-edge train out/demo --task list-lookup -o lookup.bin
      tinylora-edge train out/demo --task brevity --start distilled.bin -o brief.bin
      tinylora-edge train out/demo --task formats --system "Answer in JSON alone." --examples 2 -o json.bin
    """
    from ..tasks import load_task
    from ..train import Options, TrainSettings

    if png:
        check_plots()
    settings = TrainSettings(
        steps=steps, prompts=prompts, lr=lr, trials=tuple(trial or ()), seed=seed, anchor=anchor
    )
    options = Options(
        method=method.value,
        settings=settings,
        samples=samples,
        rollouts=rollouts.value,
        half_copy=half_copy,
        weights=None if weights is None else str(weights),
        workers=workers,
        wire=dtype.value,
        sequence=sequence,
        evaluate=evaluate,
        drift=DRIFT_PROMPTS if drift else 0,
        start=None if start is None else _values(bundle, start),
    )
    bare = load_task(task, reward=reward, seed=seed)
    loaded = behind(bare, system, examples, preamble, seed)
    with training.progress(steps) as show:
        if engine is TrainingEngine.trl:
            from ..train.trl.training import train_trl

            outcome = train_trl(bundle, loaded, output, options=options, resume=resume, report=show)
        else:
            from ..train import train as run

            outcome = run(bundle, loaded, output, options=options, resume=resume, report=show)
    if outcome.result.stopped == "interrupted":
        console.note(
            f"interrupted after step {outcome.result.steps}: the state is saved, go on with --resume"
        )
        raise typer.Exit(130)
    if against is None:
        against = Against.prompt if loaded.preamble is None else Against.none
    prompt = None
    if evaluate and against is not Against.none:
        prompt = _prompt_beside(bundle, bare, seed, workers, thorough=against is Against.best)
    duel = _duel(outcome, prompt)
    search = None if prompt is None or duel is None else (prompt, duel)
    report = TrainingReport(outcome.path, Bundle.find(bundle).basis.axes, search)
    report.write()
    if png:
        report.draw()
    _report(outcome, report, search, as_json)
    if not as_json:
        say_behind(loaded)


def _values(bundle: Path, file: Path) -> tuple[float, ...]:
    """Return the values of a vector that training begins with."""
    vector = MicroVector.from_bytes(vectors.read(str(file)), Bundle.find(bundle).basis)
    return tuple(map(float, vector.values.reshape(-1)))


def _prompt_beside(
    bundle: Path, task: Task, seed: int, workers: int | None, *, thorough: bool
) -> PromptSearch | None:
    """Search for a prompt and measure it on the held-out prompts; where that is not possible, say so."""
    from .. import runtime
    from ..runtime.contests.search import search_quickly
    from ..tasks.candidates import has_candidates

    if not has_candidates(task) and all(sample.answer is None for sample in task.train):
        console.note(
            f"no prompt was measured beside the vector: none are shipped for task {task.name}, and it has no "
            "answers to show; eval --against prompt --candidates FILE.jsonl takes yours"
        )
        return None
    search = runtime.search_prompts if thorough else search_quickly
    options: dict[str, Any] = {} if workers is None else {"n_threads": workers}
    try:
        with runtime.load(bundle, engine="llama", n_ctx=64, **options) as llm, progress() as report:
            found = search(llm, task, seed=seed, report=report, **options)
    except TinyLoraError as error:
        console.warn(f"no prompt was measured beside the vector: {error}")
        return None
    return found


def _duel(outcome: Outcome, prompt: PromptSearch | None) -> Duel | None:
    """Return the prompt against the vector, where both were measured."""
    from ..runtime import Duel

    if prompt is None or prompt.held_out is None or outcome.personalized is None:
        return None
    return Duel.between(("prompt", prompt.held_out), ("vector", outcome.personalized))


def _report(
    outcome: Outcome, report: TrainingReport, search: tuple[PromptSearch, Duel] | None, as_json: bool
) -> None:
    comparison = outcome.comparison
    if as_json:
        result = {k: v for k, v in asdict(outcome.result).items() if k != "vector"}
        record: dict[str, Any] = {"file": str(outcome.path), "report_file": str(report.path), **result}
        record["values"] = outcome.result.vector.values.reshape(-1).tolist()
        if outcome.base is not None and outcome.personalized is not None and comparison is not None:
            record["held_out"] = {
                "n": outcome.base.n,
                "base": outcome.base.mean,
                "vector": outcome.personalized.mean,
                **asdict(comparison),
            }
        if outcome.drift is not None:
            record["drift"] = outcome.drift.record()
        if search is not None:
            record["prompt"] = search[0].record() | {"duel": search[1].record()}
        console.print_json(record)
        return
    result_ = outcome.result
    console.prose(
        f"wrote {outcome.path} ({outcome.path.stat().st_size} bytes), the vector of step "
        f"{result_.best_step} of {result_.steps}: "
        f"validation {result_.start_score:.3f} -> {result_.best_score:.3f}"
    )
    if outcome.base is not None:
        print_figures(outcome.base, outcome.personalized, comparison)
        if search is not None:
            print_prompt(*search)
        print_drift(outcome.drift)
    console.say(f"report: {report.path}")
