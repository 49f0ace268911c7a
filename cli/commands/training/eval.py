"""`eval`: prove in the deployed runtime that a vector helps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .... import TrainError
from ...shared import console, keyfiles, vectors
from ...shared.options import (
    EngineName,
    EngineOption,
    JsonOption,
    KeysOption,
    MacsOption,
    RewardOption,
    TaskOption,
)
from .figures import print_drift, print_figures

if TYPE_CHECKING:
    from ....runtime import TinyLoraLlama, TinyLoraOnnx
    from ....runtime.evaluation import Evaluation
    from ....runtime.llama.batch import Batch
    from ....runtime.onnx.batch import OnnxBatch
    from ....tasks import Sample, Task


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
    keys: KeysOption = None,
    macs: MacsOption = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Measure also how far the vector is from the base in general.")
    ] = False,
    show: Annotated[int, typer.Option(metavar="N", min=0, help="Answers to show.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure a vector on held-out prompts in the deployed runtime, paired with the base.

    The drift is how far it moves the model from its base on general prompts that nobody trained on: in nats,
    and in answers that begin to repeat themselves or to be wrong.

    \b
    Example:
      tinylora-edge eval smollm2 --vector lookup.bin --task list-lookup
    """
    from ....runtime import measure_drift
    from ....runtime.evaluation import compare
    from ....runtime.evaluation import evaluate as measure
    from ....tasks import load_task

    if drift and vector is None:
        raise typer.BadParameter("the drift is a vector's: say which, with --vector", param_hint="--drift")
    policy = keyfiles.policy(keys, macs)
    loaded = load_task(task, reward=reward, seed=seed, held_out=number, max_tokens=max_tokens)
    _check_number(ctx, loaded, number)
    data = None if vector is None else vectors.read(str(vector))
    samples = loaded.held_out[:number]
    with _answering(bundle, engine, samples, loaded.max_tokens) as (llm, batch):
        checked = None if data is None else policy.check(data, llm.basis)

        def run(chosen: Any) -> Evaluation:
            return measure(batch, loaded, chosen, samples=samples, temperature=temperature, seed=seed)

        base = run(None)
        personalized = None if checked is None else run(checked)
        away = measure_drift(llm, checked, seed=seed) if drift else None
    comparison = None if personalized is None else compare(base, personalized)
    if as_json:
        record: dict[str, Any] = {"task": loaded.name, "temperature": temperature, "base": _figures(base)}
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
        console.say(f"prompt: {samples[i].text}")
        console.say(f"  base   ({base.scores[i]:g}): {base.answers[i].strip()}")
        if personalized is not None:
            console.say(f"  vector ({personalized.scores[i]:g}): {personalized.answers[i].strip()}")


def _check_number(ctx: typer.Context, task: Task, number: int) -> None:
    """Refuse a number of prompts that a task lacks; where nobody asked for one, say what there is."""
    found = len(task.held_out)
    if found >= number:
        return
    why = (
        f"task {task.name} has {found} held-out prompts, and -n is {number}: of a file about a fifth is held "
        'out, or the lines with "split": "held_out"'
    )
    source = ctx.get_parameter_source("number")
    if source is not None and source.name == "COMMANDLINE":
        raise TrainError(f"{why}. Add prompts, or leave out -n to measure on all {found}")
    console.note(f"{why}. Measuring on all {found}")


@contextmanager
def _answering(
    bundle: Path, chosen: EngineName | None, samples: Sequence[Sample], max_tokens: int
) -> Iterator[tuple[TinyLoraLlama | TinyLoraOnnx, Batch | OnnxBatch]]:
    """The deployed model, and what answers in it."""
    from .... import runtime

    if runtime.engine_of(bundle, chosen.value if chosen else None) == EngineName.onnx:
        with runtime.load(bundle, engine="onnx") as onnx:
            from ....runtime.onnx.batch import OnnxBatch

            yield onnx, OnnxBatch(onnx)
        return
    with closing(runtime.load(bundle, engine="llama", n_ctx=64)) as llama:
        from ....runtime.llama.batch import batch_for

        with batch_for(llama, samples, max_tokens) as batch:
            yield llama, batch


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "n": evaluation.n,
        "mean": evaluation.mean,
        "standard_error": evaluation.standard_error,
        "scores": evaluation.scores.tolist(),
        "answers": evaluation.answers,
    }
