"""`eval`: prove in the deployed runtime that a vector helps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import Policy, TrainError
from . import console, keyfiles, vectors
from .against import (
    Against,
    AgainstOption,
    CandidatesOption,
    ExamplesOption,
    LorasOption,
    PreamblesOption,
    SavePreambleOption,
    SystemsOption,
    Wishes,
    progress,
    vector_contestant,
    with_vector,
)
from .figures import print_drift, print_figures
from .options import (
    EngineName,
    EngineOption,
    GpuLayersOption,
    JsonOption,
    KeysOption,
    MarkStreamOption,
    RewardOption,
    TaskOption,
    ThreadsOption,
    engine_options,
)
from .standings import print_standings

if TYPE_CHECKING:
    from ..runtime import Contest, Contestant, PromptSearch, TinyLoraLlama, TinyLoraOnnx
    from ..runtime.drift import Drift
    from ..runtime.evaluation import Evaluation
    from ..tasks import Sample, Task

_DRIFT = "measuring the drift on general prompts"


def evaluate(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to measure.")],
    task: TaskOption,
    vector: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A vector, compared with the base on the same prompts."),
    ] = None,
    reward: RewardOption = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Limit of an answer. [default: the task's]")
    ] = None,
    number: Annotated[int, typer.Option("-n", metavar="N", min=2, help="Held-out prompts.")] = 128,
    temperature: Annotated[float, typer.Option(metavar="T", min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of task and sampling.")] = 0,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    keys: KeysOption = None,
    stream: MarkStreamOption = "",
    systems: SystemsOption = None,
    examples: ExamplesOption = None,
    preambles: PreamblesOption = None,
    loras: LorasOption = None,
    against: AgainstOption = Against.none,
    candidates: CandidatesOption = None,
    save_preamble: SavePreambleOption = None,
    shifted: Annotated[
        bool,
        typer.Option(
            "--shifted", help="On the task's shifted prompts: rarer words, other phrasings, longer inputs."
        ),
    ] = False,
    drift: Annotated[
        bool, typer.Option("--drift", help="Measure also how far the vector is from the base in general.")
    ] = False,
    show: Annotated[int, typer.Option(metavar="N", min=0, help="Answers to show.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure a vector on held-out prompts in the deployed runtime, paired with the base.

    Whatever else would be used in its place is measured on the same prompts: --system, --examples, --lora,
    and with --against the prompt that a search finds. Each is measured alone and together with the vector,
    with what it costs: tokens of a prompt, time, bytes.

    The drift is how far it moves the model from its base on general prompts that nobody trained on: in nats,
    and in answers that begin to repeat themselves or to be wrong.

    \b
    Examples:
      tinylora-edge eval out/demo --vector lookup.bin --task list-lookup
      tinylora-edge eval out/demo --vector lookup.bin --task list-lookup --system "One word." --examples 2
      tinylora-edge eval out/demo --vector lookup.bin --task list-lookup --against best-prompt
      tinylora-edge eval out/demo --task list-lookup --against best-prompt --save-preamble prompt.json
    """
    from ..runtime import measure_drift
    from ..runtime.evaluation import Tally, compare
    from ..runtime.evaluation import evaluate as measure
    from ..tasks import load_task

    wishes = Wishes(systems or (), examples or (), preambles or (), loras or (), against, candidates)
    if save_preamble is not None and against is Against.none:
        raise typer.BadParameter("only a search finds a prompt: add --against", param_hint="--save-preamble")
    if drift and vector is None:
        raise typer.BadParameter("the drift is a vector's: say which, with --vector", param_hint="--drift")
    policy, stream = keyfiles.policy(keys), keyfiles.stream_of(stream)
    loaded = load_task(task, reward=reward, seed=seed, held_out=number, max_tokens=max_tokens)
    split = "shifted" if shifted else "held_out"
    if shifted:
        loaded = _on_shifted(loaded)
    _check_number(ctx, loaded, number, split)
    data = None if vector is None else vectors.read(str(vector))
    samples = loaded.held_out[:number]
    if wishes:
        options = {"temperature": temperature, "seed": seed, "n_threads": threads}
        with ExitStack() as stack:
            with console.working("loading the model"):
                llm = stack.enter_context(_loaded(bundle, engine, policy, threads, gpu_layers))
            checked = None if data is None else policy.check(data, llm.basis, stream=stream)
            named = None
            if checked is not None and data is not None and vector is not None:
                named = vector_contestant(checked, data, vector)
            found, searched = _contest(llm, loaded, samples, wishes, named, options)
            if searched is not None and save_preamble is not None:
                searched.best.preamble.write(save_preamble)
            away = None
            if drift:
                with console.working(_DRIFT):
                    away = measure_drift(llm, checked, seed=seed, n_threads=threads)
        facts = {"task": loaded.name, "split": split, "temperature": temperature}
        _report_contest(facts, samples, found, searched, away, show=show, as_json=as_json)
        return
    with ExitStack() as stack:
        with console.working("loading the model"):
            llm = stack.enter_context(_loaded(bundle, engine, policy, threads, gpu_layers))
            batch: Any = stack.enter_context(
                llm._population(samples, loaded.max_tokens, sequences=32, n_threads=threads)
            )
        checked = None if data is None else policy.check(data, llm.basis, stream=stream)
        with progress() as report:
            tally = Tally(report, len(samples) * (1 if checked is None else 2))

            def run(chosen: Any, who: str) -> Evaluation:
                tally.begin(f"{who} answers")
                options: dict[str, Any] = {"temperature": temperature, "seed": seed, "answered": tally}
                return measure(batch, loaded, chosen, samples=samples, **options)

            base = run(None, "the base")
            personalized = None if checked is None else run(checked, "the vector")
        away = None
        if drift:
            with console.working(_DRIFT):
                away = measure_drift(llm, checked, seed=seed, n_threads=threads)
    comparison = None if personalized is None else compare(base, personalized)
    if as_json:
        record: dict[str, Any] = {"task": loaded.name, "split": split, "temperature": temperature}
        record["base"] = _figures(base)
        if personalized is not None and comparison is not None:
            record |= {"vector": _figures(personalized), "comparison": asdict(comparison)}
        if away is not None:
            record["drift"] = away.record()
        console.print_json(record)
        return
    print_figures(base, personalized, comparison)
    print_drift(away)
    for i in range(min(show, base.n)):
        console.say()
        console.prose(f"prompt: {samples[i].text}")
        console.indented(f"base   ({base.scores[i]:g}): {base.answers[i].strip()}", 2)
        if personalized is not None:
            console.indented(f"vector ({personalized.scores[i]:g}): {personalized.answers[i].strip()}", 2)


def _contest(
    llm: TinyLoraLlama | TinyLoraOnnx,
    task: Task,
    samples: Sequence[Sample],
    wishes: Wishes,
    vector: Contestant | None,
    options: dict[str, Any],
) -> tuple[Contest, PromptSearch | None]:
    from ..runtime import contest

    with wishes.contestants(llm, task, samples, options["seed"]) as others:
        searched = wishes.search(llm, task, **options)
        field = with_vector(vector, [*others, *([] if searched is None else [searched[1]])])
        with progress() as report:
            found = contest(llm, task, field, samples=samples, report=report, **options)
    return found, None if searched is None else searched[0]


def _report_contest(
    facts: dict[str, Any],
    samples: Sequence[Sample],
    found: Contest,
    searched: PromptSearch | None,
    drift: Drift | None,
    *,
    show: int,
    as_json: bool,
) -> None:
    names = [standing.contestant.name for standing in found.standings]
    if as_json:
        record = dict(facts)
        record["base"] = _figures(found["base"].evaluation)
        if "vector" in names:
            record["vector"] = _figures(found["vector"].evaluation)
            record["comparison"] = asdict(found.duel("base", "vector").comparison)
        record["against"] = found.record()
        if searched is not None:
            record["search"] = searched.record()
        if drift is not None:
            record["drift"] = drift.record()
        console.print_json(record)
        return
    print_standings(found, "vector" if "vector" in names else None, searched)
    print_drift(drift)
    width = max(map(len, names))
    for i in range(min(show, len(samples))):
        console.say()
        console.prose(f"prompt: {samples[i].text}")
        for standing in found.standings:
            one = standing.evaluation
            console.indented(
                f"{standing.contestant.name:<{width}} ({one.scores[i]:g}): {one.answers[i].strip()}", 2
            )


def _on_shifted(task: Task) -> Task:
    """Return the task with its shifted prompts in the place of the held-out ones."""
    if not task.shifted:
        raise TrainError(
            f"task {task.name} has no shifted prompts: leave out --shifted, or give lines of the file "
            '"split": "shifted"'
        )
    return replace(task, held_out=task.shifted)


def _check_number(ctx: typer.Context, task: Task, number: int, split: str) -> None:
    """Refuse a number of prompts that a task lacks; where nobody asked for one, say what there is."""
    found = len(task.held_out)
    if found >= number:
        return
    kind = split.replace("_", "-")
    of_file = "about a fifth is held out, or the lines" if split == "held_out" else "the lines"
    why = (
        f"task {task.name} has {found} {kind} prompts, and -n is {number}: of a file {of_file} with "
        f'"split": "{split}"'
    )
    source = ctx.get_parameter_source("number")
    if source is not None and source.name == "COMMANDLINE":
        raise TrainError(f"{why}. Add prompts, or leave out -n to measure on all {found}")
    console.note(f"{why}. Measuring on all {found}")


@contextmanager
def _loaded(
    bundle: Path, chosen: EngineName | None, policy: Policy, threads: int | None, gpu_layers: int | None
) -> Iterator[TinyLoraLlama | TinyLoraOnnx]:
    """The deployed model; answers are generated in contexts of their own."""
    from .. import runtime

    engine = runtime.engine_of(bundle, chosen.value if chosen else None)
    options = engine_options(engine, threads, gpu_layers)
    if engine == EngineName.onnx:
        with runtime.load(bundle, engine="onnx", policy=policy, **options) as onnx:
            yield onnx
        return
    with closing(runtime.load(bundle, engine="llama", n_ctx=64, policy=policy, **options)) as llama:
        yield llama


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "n": evaluation.n,
        "mean": evaluation.mean,
        "standard_error": evaluation.standard_error,
        "scores": evaluation.scores.tolist(),
        "answers": evaluation.answers,
    }
