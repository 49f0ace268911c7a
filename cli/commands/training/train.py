"""`train` and `eval`: find a vector on a host, and prove that it helps in the deployed runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..shared import console, keyfiles, training, vectors
from .generate import Engine as DeployedEngine
from .generate import EngineName
from .vector.group import Dtype

if TYPE_CHECKING:
    from ...runtime.evaluation import Comparison, Evaluation
    from ...runtime.llama.batch import Batch
    from ...runtime.onnx.batch import OnnxBatch
    from ...tasks import Sample
    from ...train.run import Outcome

TaskName = Annotated[
    str,
    typer.Option("--task", metavar="TASK", help="A built-in task (tinylora-edge tasks), or a JSONL file."),
]
Reward = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="Reward, such as '0.5*max_words(12)+0.5*ends_itself', or MODULE:NAME."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Report as JSON.")]


class Method(StrEnum):
    """How v is trained."""

    grpo = "grpo"
    sft = "sft"


class Engine(StrEnum):
    """Whose training loop runs."""

    own = "own"
    trl = "trl"


class Rollouts(StrEnum):
    """What draws completions."""

    llama = "llama"
    hf = "hf"


def train(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to train for.")],
    task: TaskName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The frame to write.")],
    reward: Reward = None,
    method: Annotated[Method, typer.Option(help="grpo, or cross-entropy on given answers.")] = Method.grpo,
    engine: Annotated[Engine, typer.Option(help="Our loop, or TRL's on many GPUs.")] = Engine.own,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps.")] = 40,
    prompts: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts a step.")] = 8,
    samples: Annotated[int, typer.Option(metavar="N", min=2, help="Completions a prompt.")] = 8,
    lr: Annotated[
        float | None, typer.Option(metavar="X", help="Step size of Adam on v. [default: measured]")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of everything.")] = 0,
    rollouts: Annotated[Rollouts, typer.Option(help="Engine that draws.")] = Rollouts.llama,
    bf16_copy: Annotated[
        bool | None,
        typer.Option(
            "--bf16-copy/--no-bf16-copy", help="Draw with a bfloat16 copy of the base. [default: if faster]"
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hugging Face weights to learn on. [default: the base]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads. [default: every core]")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="dtype of the frame.")] = Dtype.fp32,
    sequence: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Of the frame.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    evaluate: Annotated[bool, typer.Option(help="Measure on held-out prompts at the end.")] = True,
    as_json: AsJson = False,
) -> None:
    """Train a vector for a task with GRPO, and write it as a frame.

    Beside FILE it leaves FILE.json: task, settings, curve, held-out figures. Ctrl-C saves the state.

    \b
    Example:
      tinylora-edge train smollm2 --task list-lookup -o lookup.bin
    """
    from ...train import Options, Settings

    settings = Settings(steps=steps, prompts=prompts, lr=lr, seed=seed)
    options = Options(
        method=method.value,
        settings=settings,
        samples=samples,
        rollouts=rollouts.value,
        bf16_copy=bf16_copy,
        weights=None if weights is None else str(weights),
        workers=workers,
        wire=dtype.value,
        sequence=sequence,
        evaluate=evaluate,
    )
    loaded = _load(task, reward, seed)
    with training.progress(steps) as show:
        if engine is Engine.trl:
            from ...train.trl.training import train_trl

            outcome = train_trl(bundle, loaded, output, options=options, resume=resume, report=show)
        else:
            from ...train import train as run

            outcome = run(bundle, loaded, output, options=options, resume=resume, report=show)
    if outcome.result.stopped == "interrupted":
        console.note(
            f"interrupted after step {outcome.result.steps}: the state is saved, go on with --resume"
        )
        raise typer.Exit(130)
    _report(outcome, as_json)


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to measure.")],
    task: TaskName,
    vector: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A vector, compared with the base on the same prompts."),
    ] = None,
    reward: Reward = None,
    number: Annotated[int, typer.Option("-n", metavar="N", min=2, help="Held-out prompts.")] = 128,
    temperature: Annotated[float, typer.Option(metavar="T", min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of task and sampling.")] = 0,
    engine: DeployedEngine = None,
    keys: keyfiles.Keys = None,
    macs: keyfiles.Macs = None,
    show: Annotated[int, typer.Option(metavar="N", min=0, help="Answers to show.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure a vector on held-out prompts in the deployed runtime, paired with the base.

    \b
    Example:
      tinylora-edge eval smollm2 --vector lookup.bin --task list-lookup
    """
    from ...runtime.evaluation import compare
    from ...runtime.evaluation import evaluate as measure

    policy = keyfiles.policy(keys, macs)
    loaded = _load(task, reward, seed, held_out=number)
    data = None if vector is None else vectors.read(str(vector))
    samples = loaded.held_out[:number]
    with _answering(bundle, engine, samples, loaded.max_tokens) as batch:
        checked = None if data is None else policy.check(data, batch.llm.basis)

        def run(chosen: Any) -> Evaluation:
            return measure(batch, loaded, chosen, samples=samples, temperature=temperature, seed=seed)

        base = run(None)
        personalized = None if checked is None else run(checked)
    comparison = None if personalized is None else compare(base, personalized)
    if as_json:
        record: dict[str, Any] = {"task": loaded.name, "temperature": temperature, "base": _figures(base)}
        if personalized is not None and comparison is not None:
            record |= {"vector": _figures(personalized), "comparison": asdict(comparison)}
        console.print_json(record)
        return
    _print(base, personalized, comparison)
    for i in range(min(show, base.n)):
        console.say()
        console.say(f"prompt: {samples[i].text}")
        console.say(f"  base   ({base.scores[i]:g}): {base.answers[i].strip()}")
        if personalized is not None:
            console.say(f"  vector ({personalized.scores[i]:g}): {personalized.answers[i].strip()}")


def tasks(as_json: AsJson = False) -> None:
    """List the built-in tasks.

    \b
    Example:
      tinylora-edge tasks
    """
    from ...tasks import BUILTIN

    if as_json:
        console.print_json(list(BUILTIN))
        return
    for name in BUILTIN:
        console.say(name)


@contextmanager
def _answering(
    bundle: Path, chosen: EngineName | None, samples: Sequence[Sample], max_tokens: int
) -> Iterator[Batch | OnnxBatch]:
    """What answers in the deployed runtime."""
    from ... import runtime

    if runtime.engine_of(bundle, chosen.value if chosen else None) == EngineName.onnx:
        with runtime.load(bundle, engine="onnx") as onnx:
            from ...runtime.onnx.batch import OnnxBatch

            yield OnnxBatch(onnx)
        return
    with closing(runtime.load(bundle, engine="llama", n_ctx=64)) as llama:
        from ...runtime.llama.batch import batch_for

        with batch_for(llama, samples, max_tokens) as batch:
            yield batch


def _load(name: str, reward: str | None, seed: int, **options: Any) -> Any:
    from ...tasks import load_task

    return load_task(name, reward=reward, seed=seed, **options)


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "n": evaluation.n,
        "mean": evaluation.mean,
        "standard_error": evaluation.standard_error,
        "scores": evaluation.scores.tolist(),
        "answers": evaluation.answers,
    }


def _report(outcome: Outcome, as_json: bool) -> None:
    comparison = outcome.comparison
    if as_json:
        result = {k: v for k, v in asdict(outcome.result).items() if k != "vector"}
        record: dict[str, Any] = {"file": str(outcome.path), **result}
        record["values"] = outcome.result.vector.values.reshape(-1).tolist()
        if outcome.base is not None and outcome.personalized is not None and comparison is not None:
            record["held_out"] = {
                "n": outcome.base.n,
                "base": outcome.base.mean,
                "vector": outcome.personalized.mean,
                **asdict(comparison),
            }
        console.print_json(record)
        return
    result_ = outcome.result
    console.say(
        f"wrote {outcome.path} ({outcome.path.stat().st_size} bytes), the vector of step "
        f"{result_.best_step} of {result_.steps}: "
        f"validation {result_.start_score:.3f} -> {result_.best_score:.3f}"
    )
    if outcome.base is not None:
        _print(outcome.base, outcome.personalized, comparison)


def _print(base: Evaluation, personalized: Evaluation | None, comparison: Comparison | None) -> None:
    rows = [("base", f"{base.mean:.3f} +- {base.standard_error:.3f} (n = {base.n}, held out)")]
    if personalized is not None and comparison is not None:
        rows += [
            ("vector", f"{personalized.mean:.3f} +- {personalized.standard_error:.3f}"),
            *training.compared(comparison),
        ]
    console.facts(rows)
