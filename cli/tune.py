"""`tune`: find a vector on the device itself, with forward passes alone."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import SpinnerColumn, TimeRemainingColumn

from .. import TrainError, __version__
from ..system import atomic_write
from ..vector import FIRST_SEQUENCE
from . import console, keyfiles, vectors
from .figures import drift_beside, print_drift, print_figures
from .options import (
    AnchorOption,
    CoresOption,
    DriftOption,
    Dtype,
    DtypeOption,
    EngineOption,
    GpuLayersOption,
    JsonOption,
    KeysOption,
    RewardOption,
    RunFrameOption,
    SequenceOption,
    TaskOption,
    engine_options,
)
from .preambles import PreambleOption, ShownOption, SystemOption, behind, say_behind

if TYPE_CHECKING:
    from ..runtime import Budget, RewardLearner, Tuned
    from ..runtime.drift import Drift
    from ..runtime.evaluation import Evaluation
    from ..tasks import Task


def tune(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to tune for.")],
    task: TaskOption,
    output: RunFrameOption,
    budget: Annotated[
        str, typer.Option(metavar="AMOUNT", help="What it may take: 90s, 5m, 1h, or 80ktokens.")
    ] = "5m",
    reward: RewardOption = None,
    start: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A vector to begin with. [default: the base]")
    ] = None,
    keys: KeysOption = None,
    system: SystemOption = None,
    examples: ShownOption = None,
    preamble: PreambleOption = None,
    prompts: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts a step.")] = 8,
    max_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Longest answer in tokens. [default: the task's]"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of everything.")] = 0,
    engine: EngineOption = None,
    sequences: Annotated[
        int, typer.Option(metavar="N", min=1, help="Answers that are generated at the same time.")
    ] = 32,
    threads: CoresOption = None,
    gpu_layers: GpuLayersOption = None,
    dtype: DtypeOption = Dtype.fp32,
    sequence: SequenceOption = FIRST_SEQUENCE,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    anchor: AnchorOption = 0.0,
    evaluate: Annotated[bool, typer.Option(help="Measure on held-out prompts at the end.")] = True,
    drift: DriftOption = True,
    as_json: JsonOption = False,
) -> None:
    """Tune a vector for a task on this device: no PyTorch, no gradients, the base as it is deployed.

    A vector to begin with that is signed, or has a MAC, needs the key that it is checked under.

    A part of the task's training prompts is held back and decides what is written: where nothing does better
    on them, the start is. Beside FILE it leaves FILE.json: settings, curve, held-out figures. Ctrl-C
    saves the state; it holds numbers alone, no prompt and no answer.

    With --system, --examples or --preamble the vector is found behind a prompt, and belongs to it.

    \b
    Example:
      tinylora-edge tune out/demo --task list-lookup --budget 5m -o lookup.bin
    """
    from .. import runtime
    from ..tasks import load_task

    if start is None and keys:
        raise typer.BadParameter("only a vector to begin with is checked under a key", param_hint="--start")
    policy = keyfiles.policy(keys)
    amount = runtime.Budget.of(budget)
    state = output.with_name(f"{output.name}.state")
    _check_files(output, state, resume)
    loaded = load_task(task, reward=reward, seed=seed, max_tokens=max_tokens)
    loaded = behind(loaded, system, examples, preamble, seed)
    chosen = runtime.engine_of(bundle, engine.value if engine else None)
    options = engine_options(chosen, threads, gpu_layers)
    if chosen == "llama":
        options |= {"n_ctx": 64}  # the answers are generated in contexts of their own
    first = None if start is None else vectors.read(str(start))
    curve: list[dict[str, Any]] = []
    with ExitStack() as stack:
        with console.working("loading the model"):
            llm = stack.enter_context(
                closing(runtime.load(bundle, first, engine=chosen, policy=policy, **options))
            )
        show = stack.enter_context(_progress(amount))

        def report(figures: dict[str, Any]) -> None:
            curve.append(figures)
            show(figures)

        tuning = runtime.RewardLearner(
            llm,
            loaded.train,
            loaded.reward,
            shaped=loaded.shaped,
            seed=seed,
            max_tokens=loaded.max_tokens,
            settings=runtime.TuneSettings(prompts=prompts, anchor=anchor),
            path=state,
            report=report,
            sequences=sequences,
            n_threads=threads,
        )
        with _interruptible(tuning):
            found = tuning._sit(_rest(amount, tuning), last_check=True, resumed=resume)
        if found.stopped == "stopped":
            stack.close()
            console.note(f"interrupted after step {found.steps}: the state is saved, go on with --resume")
            raise typer.Exit(130)
        vector = replace(found.vector, dtype=dtype.value, sequence=sequence)
        figures = None
        if evaluate:
            show({"doing": "measuring on held-out prompts"})
            figures = _measure(llm, loaded, vector, sequences, threads)
        away = None
        if evaluate and drift:
            show({"doing": "measuring the drift on general prompts"})
            away = drift_beside(llm, vector, sequences=sequences, n_threads=threads)
    record = _record(loaded, vector.values.reshape(-1).tolist(), found, figures)
    if away is not None:
        record["drift"] = away.record()
    manifest = {
        "tool": f"tinylora-edge {__version__}",
        "basis": llm.basis.digest,
        "dtype": vector.dtype,
        "sequence": vector.sequence,
        "budget": asdict(amount),
        "seed": seed,
        "settings": asdict(tuning.settings),
        **record,
        "curve": curve,
    }
    with atomic_write(output.with_name(f"{output.name}.json")) as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())
    with atomic_write(output) as file:
        file.write(vector.to_bytes(llm.basis))
    state.unlink(missing_ok=True)
    _report(output, record, found, figures, away, as_json=as_json)
    if not as_json:
        say_behind(loaded)


def _check_files(output: Path, state: Path, resume: bool) -> None:
    if output.exists():
        raise TrainError(f"{output} exists already: choose another output, or remove it first")
    if not output.parent.is_dir():
        raise FileNotFoundError(2, "there is no such directory", str(output.parent))
    if resume and not state.exists():
        raise TrainError(f"there is no state {state} to resume from: start without --resume")
    if not resume and state.exists():
        raise TrainError(f"{state} holds the state of an unfinished run: go on with --resume, or remove it")


def _rest(amount: Budget, tuning: RewardLearner) -> Budget:
    """What an earlier sitting left of the budget; never nothing, which would be no budget."""
    state = tuning.state
    return replace(
        amount,
        seconds=None if amount.seconds is None else max(amount.seconds - state.seconds, 1e-3),
        tokens=None if amount.tokens is None else max(amount.tokens - state.tokens, 1),
    )


def _measure(
    llm: Any, task: Task, vector: Any, sequences: int, threads: int | None
) -> tuple[Evaluation, Evaluation]:
    from ..runtime.evaluation import evaluate

    with llm._population(task.held_out, task.max_tokens, sequences=sequences, n_threads=threads) as batch:
        return evaluate(batch, task, None), evaluate(batch, task, vector)


def _record(
    task: Task, values: list[float], found: Tuned, figures: tuple[Evaluation, Evaluation] | None
) -> dict[str, Any]:
    from ..runtime.evaluation import compare

    result = {key: value for key, value in vars(found).items() if key != "vector"}
    record: dict[str, Any] = {"task": task.name, "values": values, "result": result}
    if task.preamble is not None:
        record["preamble"] = task.preamble
    if figures is not None:
        base, tuned = figures
        record["held_out"] = {
            "n": base.n,
            "base": base.mean,
            "base_standard_error": base.standard_error,
            "vector": tuned.mean,
            "vector_standard_error": tuned.standard_error,
            **asdict(compare(base, tuned)),
        }
    return record


def _report(
    output: Path,
    record: dict[str, Any],
    found: Tuned,
    figures: tuple[Evaluation, Evaluation] | None,
    drift: Drift | None,
    *,
    as_json: bool,
) -> None:
    from ..runtime.evaluation import compare

    if not found.improved:
        on = console.counted(found.held_back, "prompt")
        console.warn(f"nothing did better than the start on the {on} held back: {output} is the start")
    if as_json:
        console.print_json({"file": str(output), **record})
        return
    console.prose(
        f"wrote {output} ({output.stat().st_size} bytes) after {console.counted(found.steps, 'step')}, "
        f"{found.tokens:,} tokens and {found.seconds:.0f} s: prompts held back "
        f"{found.start_score:.3f} -> {found.score:.3f}"
    )
    if figures is not None:
        base, tuned = figures
        print_figures(base, tuned, compare(base, tuned))
    print_drift(drift)


@contextmanager
def _progress(budget: Budget) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show on a terminal how much of the budget is spent, and what is known so far."""
    columns = (
        SpinnerColumn(),
        console.words("step {task.fields[step]}"),
        console.bar(beside=63),
        console.words("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    limits = {key: limit for key, limit in asdict(budget).items() if limit is not None}
    with console.bars(*columns) as bar:
        task = bar.add_task("", total=1.0, step=0, figures="scoring the start")
        known: dict[str, str] = {}

        def show(figures: dict[str, Any]) -> None:
            if "doing" in figures:
                bar.update(task, completed=1.0, figures=figures["doing"])
            if "doing" in figures or figures.get("event") in ("restart", "end"):
                return
            for key, name in (("reward", "reward"), ("check", "held back")):
                if key in figures:
                    known[key] = f"{name} {figures[key]:.2f}"
            spent = max(figures[key] / limit for key, limit in limits.items())
            speed = f"{figures['tokens'] / max(figures['seconds'], 1e-9):.0f} tokens/s"
            text = "  ".join([*(known[key] for key in ("reward", "check") if key in known), speed])
            bar.update(task, completed=min(spent, 1.0), step=figures.get("step", 0), figures=text)

        yield show


@contextmanager
def _interruptible(tuning: RewardLearner) -> Iterator[None]:
    """Let SIGINT end the run after the step at hand; a second one as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        tuning.stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
