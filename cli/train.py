"""`train`: find a vector on a host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import BadParameter, Option

from tinylora_edge import BasisError, Policy, load_bundle
from tinylora_edge.factors import Shape, read_shape
from tinylora_edge.jsonio import read_json
from tinylora_edge.wire.frame import DEFAULT_USER, bound_name

from . import console, keyfiles, report, results, vectors
from . import options as opts
from .many import train_users

if TYPE_CHECKING:
    from tinylora_edge import Bases, Bundle
    from tinylora_edge.tasks import Task
    from tinylora_edge.train import Options


def _shape(text: str) -> Shape:
    try:
        return read_shape(text)
    except BasisError as error:
        raise BadParameter(str(error)) from None


def train(
    bundle: opts.BundleArgument,
    data: opts.DataArgument,
    output: opts.RunFrameOption,
    reward: opts.RewardOption = None,
    drop_duplicates: opts.DropDuplicatesOption = False,
    schema: opts.SchemaOption = None,
    method: Annotated[
        Literal["sft", "grpo"] | None,
        Option(help="sft: learn answers; grpo: learn from a reward. [default: both, each if it gains]"),
    ] = None,
    minutes: Annotated[
        float | None,
        Option(metavar="M", help="Minutes to train; measuring comes on top. [default: 5 without --steps]"),
    ] = None,
    steps: Annotated[
        int | None, Option(metavar="N", min=1, help="Most steps. [default: as many as the minutes allow]")
    ] = None,
    prompts: Annotated[int, Option(metavar="N", min=1, help="Prompts in each step.")] = 8,
    samples: Annotated[int, Option(metavar="N", min=2, help="Answers to sample for each prompt (grpo).")] = 8,
    lr: Annotated[float | None, Option(metavar="X", help="Step size. [default: by method and size]")] = None,
    size: Annotated[
        Literal["small", "medium", "large", "full"] | None,
        Option(help="For SmolLM2 855 bytes, 13 kB, 55 kB; full: all outputs of BUNDLE. [default: large]"),
    ] = None,
    rank: Annotated[
        Any,  # not a tuple, which typer would take for several values
        Option(metavar="K|PxQ", parser=_shape, help="Instead of --size: all entries of R, K x K or P x Q."),
    ] = None,
    numbers: Annotated[int | None, Option(metavar="N", help="Instead of --size: N numbers.")] = None,
    dtype: Annotated[
        opts.Dtype | None,
        Option(help="Type of the numbers in FILE. [default: q4 from rank 4 on, else int8]"),
    ] = None,
    start: Annotated[
        Path | None, Option(metavar="FILE", help="Begin with this vector, of the same size or smaller.")
    ] = None,
    under: opts.UnderOption = None,
    keys: opts.KeysOption = None,
    user: opts.UserOption = DEFAULT_USER,
    system: opts.SystemOption = None,
    examples: opts.ExamplesOption = None,
    seed: Annotated[int, Option(metavar="N", min=0, help="Seed of all random numbers.")] = 0,
    weights: Annotated[
        Path | None,
        Option(metavar="PATH", help="Weights to train on, instead of BUNDLE's: GGUF or Hugging Face."),
    ] = None,
    workers: Annotated[
        int | None, Option(metavar="N", min=1, help="For many users: number of processes. [default: 1]")
    ] = None,
    ray: Annotated[
        str | None, Option(metavar="ADDRESS", help="For many users: the Ray cluster to use; auto finds it.")
    ] = None,
    store: opts.StoreOption = None,
    resume: Annotated[bool, Option("--resume", help="Continue an interrupted run.")] = False,
    keep: Annotated[
        bool | None,
        Option(
            "--keep/--no-keep",
            help="Rehearse general prompts, so that their answers change less. [default: in SFT]",
        ),
    ] = None,
    evaluate: Annotated[
        bool | None,
        Option("--evaluate/--no-evaluate", help="Measure the gain. [default: for one user]"),
    ] = None,
    as_json: opts.JsonOption = False,
) -> None:
    """Train a vector on examples, and write it as a frame.

    If every example has an answer, train learns the answers (SFT) until the score on held-back prompts gets
    no better. If sampled answers then differ in their rewards, it learns from the rewards (GRPO). It leaves
    out a method that gains nothing.

    Beside FILE, train writes FILE.json (task, settings, curve, held-out figures, answers) and a report to
    look at, v.html for v.bin. Ctrl-C saves the state.

    It measures the vector beside the obvious prompt, which it composes from DATA: an instruction that lists
    the labels or the fields, and worked examples. The last line says whether vector or prompt is ahead.

    A larger vector learns more; calls with arguments need a large one. With --numbers 13 the vector has 37
    bytes, along the bundle's learned directions if it has some, otherwise along the paper's random ones.

    With --under, train learns a vector on top of a shared one. FILE holds the new vector alone: use it
    together with the shared one. Texts without prompts are then learned in a few full steps, unless --minutes
    or --steps is given.

    DATA may hold the texts of many users: a folder with a file for each user, or JSON lines with "user" and
    "text". Each user gets a vector, in the folder FILE as publish writes it, or with --store in the servers'
    store. A private --key signs the vectors. FILE.report.jsonl has the result for each user.

    With --system or --examples, the vector is trained behind a prompt. Use it behind the same prompt.

    \b
    Examples:
      tinylora-edge train out/demo examples.jsonl -o mine.bin
      tinylora-edge train out/demo brevity --size small --minutes 20 -o brief.bin
      tinylora-edge train out/demo brevity --start brief.bin -o briefer.bin
      tinylora-edge train out/demo examples.csv --schema label -o mine.bin
      tinylora-edge train out/demo mine.txt --under shared.bin -o mine.bin
      tinylora-edge train out/demo people/ --under shared.bin -o vectors --key fleet.key --workers 8
    """
    from tinylora_edge.tasks import BUILTIN
    from tinylora_edge.train import Options
    from tinylora_edge.train.many import names_users
    from tinylora_edge.train.texts import whitening_path

    found = load_bundle(bundle)
    if size is not None:
        if rank is not None or numbers is not None:
            raise BadParameter("--size is a rank: pass one of --size, --rank and --numbers")
        rank = found.factors.sizes[size]
    beside = None if under is None else whitening_path(under)
    many = data not in BUILTIN and names_users(Path(data))
    options = Options(
        method=method,
        minutes=minutes,
        steps=steps,
        prompts=prompts,
        samples=samples,
        rank=rank,
        numbers=numbers,
        lr=lr,
        frame_dtype=dtype,
        seed=seed,
        keep=keep,
        under=None if under is None else vectors.read(str(under)),
        whitening=None if beside is None or not beside.exists() else beside.read_bytes(),
        keys=() if many else keyfiles.verifiers(keys),
        weights=None if weights is None else str(weights),
        evaluate=evaluate is not False,
    )
    if many:
        of_one: dict[str, object] = {"--method": method, "--minutes": minutes, "--steps": steps, "--lr": lr}
        of_one |= {"--start": start, "--system": system, "--examples": examples, "--reward": reward}
        for name, value in {**of_one, "--schema": schema, "--keep": keep}.items():
            if value is not None:
                why = "the option is for one user's vector, and DATA has many users"
                raise BadParameter(why, param_hint=name)
        how: dict[str, Any] = {"under": under, "store": store, "keys": keys, "evaluate": bool(evaluate)}
        how |= {"workers": workers, "ray": ray, "resume": resume, "as_json": as_json}
        train_users(bundle, Path(data), output, options, **how)
        return
    if (workers, ray, store) != (None, None, None):
        raise BadParameter(
            f"{data} does not have the texts of many users: pass a folder, or JSON lines", param_hint="DATA"
        )
    if (page := output.with_suffix(".html")) == output:
        raise BadParameter(f"{output} is where the report goes: give the vector another name, such as v.bin")
    vectors.check_target(str(page))
    if start is not None:
        options = _begun(options, found.bases, start, bound_name(user))
    loaded = opts.load_data(data, reward=reward, schema=schema, drop_duplicates=drop_duplicates)
    loaded = opts.make_preamble(loaded, system, examples).before_task(loaded)
    _train_one(found, loaded, output, options, page, resume, as_json)


def _begun(options: Options, bases: Bases, start: Path, user: str) -> Options:
    """Return options that begin with the vector in a file, and give the new one the next sequence."""
    from tinylora_edge.train import grown

    vector = Policy(keys=options.keys).check(vectors.read(str(start)), bases, user=user)
    values = grown(vector, bases, options.basis(bases))
    return replace(options, start=values, sequence=vectors.next_sequence(vector))


def _train_one(
    bundle: Bundle, task: Task, output: Path, options: Options, page: Path, resume: bool, as_json: bool
) -> None:
    from tinylora_edge.train import train as run

    with training_progress() as show:
        outcome = run(bundle, task, output, options=options, resume=resume, report=show)
    result = outcome.result
    if result.stopped == "interrupted":
        console.note(f"interrupted after step {result.steps}: the state is saved, continue with --resume")
        raise typer.Exit(130)
    record: dict[str, Any] = {"file": str(outcome.path)}
    record |= read_json(outcome.path.with_name(f"{outcome.path.name}.json"))
    if not options.evaluate:
        record["unmeasured"] = {"base, prompt and drift": "--no-evaluate; eval measures them"}
    report.write(page, {outcome.path.name: record})
    kept = f"the vector of step {result.best_step} of {result.steps}" if result.best_step else "as it began"
    wrote = f"wrote {outcome.path} ({outcome.path.stat().st_size:,} bytes), {kept}"
    console.report(record, as_json, wrote, rows=results.phases(record))
    if not as_json:
        results.show(record)


@contextmanager
def training_progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show a run's data, loss, rewards and progress."""
    known: dict[str, str] = {}
    sign = 1
    with console.progress("loading the model", 1.0) as bar:

        def show(metrics: dict[str, Any]) -> None:
            nonlocal sign
            event = metrics.get("event")
            if event == "data" and metrics["reward"] == "text":  # its rewards are minus nats a token
                sign = -1
            if event == "start":
                known.clear()
            if event in (None, "start"):
                shown = metrics | {"validation": sign * metrics.get("validation", 0.0)}
                known.update(
                    {key: text.format(shown[key]) for key, text in _METRICS.items() if key in metrics}
                )
                at = f"{metrics['method']}, step {metrics.get('step', 0)}"
                values = (known[key] for key in _METRICS if key in known)
                bar("  ".join([at, *values]), done=metrics.get("share", 0.0), total=1.0)
            elif event == "measuring":
                console.measuring(bar)(metrics)
            elif event == "stopping":
                console.acknowledge_interrupt()
            else:
                _note_event(metrics, sign, bar)

        yield show


_METRICS = {  # those of a step that are shown
    "loss": "loss {:.3f}",
    "reward": "reward {:.2f}",
    "validation": "held back {:.3f}",
    "validation_loss": "(loss {:.3f})",
}


def _note_event(metrics: dict[str, Any], sign: int, bar: console.Show) -> None:
    event = metrics["event"]
    if event == "data":
        console.note(
            f"{metrics['train']} examples to learn from, {metrics['validation']} held back to choose the "
            f"vector by, {metrics['held_out']} held out to measure it on; reward {metrics['reward']}; "
            f"{' and then '.join(map(str.upper, metrics['methods']))} on {metrics['numbers']:,} numbers"
        )
        bar("scoring the start")
    elif event == "texts":
        held = (
            f"{metrics['held_out']} held out to measure the gain first"
            if metrics["held_out"]
            else "none held out"
        )
        console.note(f"{metrics['train']} texts, learned in {metrics['steps']} full steps, {held}")
    elif event == "estimate":
        minutes = console.counted(max(1, math.ceil(metrics["seconds"] / 60)), "minute")
        console.note(f"after the training, measuring takes up to about {minutes}; --no-evaluate skips it")
    elif event == "whitening":
        bar("making the whitening for vectors on this one")
    elif event == "temperature":
        drawn = "".join(f", {share:.0%} differ at {at}" for at, share in metrics["differ"].items())
        bar(f"drawing answers at temperature {metrics['temperature']}{drawn}", done=0.0, total=1.0)
    elif event == "silent":
        console.warn(
            "two steps learned nothing: for every prompt, all sampled answers got the same reward, "
            f"{metrics['reward']:.3f} on average. Add answers to DATA, sample more with --samples, or "
            "make the task easier or harder"
        )
    elif event == "back-off":
        worse = f"{sign * metrics['validation']:.3f} after {sign * metrics['best']:.3f}"
        console.warn(
            f"held-back prompts got worse, {worse}: went back to the best vector and halved the step size to "
            f"{metrics['lr']:.2g}"
        )
