"""`distill`: a prompt becomes a vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TrainError
from ..vector import FIRST_SEQUENCE
from . import console, vectors
from .figures import drift_beside, print_drift
from .options import (
    CoresOption,
    DriftOption,
    Dtype,
    DtypeOption,
    EngineName,
    EngineOption,
    FrameOption,
    GpuLayersOption,
    JsonOption,
    SequenceOption,
    engine_options,
)

if TYPE_CHECKING:
    from ..runtime import Replacement, TinyLoraLlama, TinyLoraOnnx
    from ..runtime.drift import Drift
    from ..tasks.behaviours import Behaviour
    from ..vector import MicroVector

_LITTLE = 0.2
"""Share of the distance below which the vector is no replacement of the prompt."""

_BUDGET, _STEPS, _COUNT = "5m", 8, 32
_HELD_OUT = 16
"""Shipped questions that a device measures on at most."""


def distill(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to make a vector for.")],
    output: FrameOption,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The prompt, as a system message.")
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Worked examples: a `question` and an `answer` a line."),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Questions, a line each. [default: general ones that are shipped]"),
    ] = None,
    on_device: Annotated[
        bool,
        typer.Option("--on-device", help="By forward passes alone, as a device does it: without PyTorch."),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT",
            help="With --on-device: what it may take, 90s, 5m, 1h, or 30ktokens. [default: 5m]",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "-n",
            metavar="N",
            min=2,
            help="Questions to learn on; half as many measure. [default: 32; what the budget affords]",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Steps of L-BFGS. [default: 8]")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the answers.")] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Hugging Face weights. [default: the bundle's, dequantized]"),
    ] = None,
    engine: EngineOption = None,
    threads: CoresOption = None,
    gpu_layers: GpuLayersOption = None,
    dtype: DtypeOption = Dtype.fp32,
    sequence: SequenceOption = FIRST_SEQUENCE,
    drift: DriftOption = True,
    as_json: JsonOption = False,
) -> None:
    """Distill a prompt into a vector: without the prompt, the model answers as it does with it.

    It is measured on questions that were not learned on: how much of the distance to the prompted model the
    vector closes, and what it saves in tokens and in time to the first one. By default it takes gradients,
    with PyTorch on a host; with --on-device forward passes alone, in the engine that runs the model.

    \b
    Examples:
      tinylora-edge distill out/demo --system "Answer in one short sentence." -o short.bin
      tinylora-edge distill out/demo --system "Talk like a pirate." -o p.bin --on-device --budget 5m
    """
    from ..tasks.behaviours import Behaviour, load_examples

    if system is None and examples is None:
        raise typer.BadParameter("say what to distill: --system TEXT, --examples FILE, or both")
    if budget is not None and not on_device:
        raise typer.BadParameter("only --on-device has a budget: a host takes --steps", param_hint="--budget")
    for name, value in (("--steps", steps), ("--weights", weights), ("-n", count)):
        if value is not None and on_device:
            raise typer.BadParameter(
                "--on-device takes no gradients: its --budget decides how much it does", param_hint=name
            )
    for name, wish in (("--engine", engine), ("--gpu-layers", gpu_layers)):
        if wish is not None and not on_device:
            raise typer.BadParameter(
                "on a host PyTorch learns and llama.cpp answers: only --on-device has a choice",
                param_hint=name,
            )
    vectors.refuse_report(str(output), as_json)
    vectors.check_target(str(output), force=False)
    load = partial(_loaded, bundle, engine, threads, gpu_layers)
    behaviour = Behaviour("own", system=system, examples=() if examples is None else load_examples(examples))
    own = None if questions is None else _read(questions)
    if on_device:
        vector, replacement, figures = _on_device(load, behaviour, own, budget or _BUDGET, seed, threads)
    else:
        options = {"steps": steps or _STEPS, "seed": seed}
        sides = _sides(questions, own, count or _COUNT)
        vector, replacement, figures = _on_host(bundle, behaviour, sides, options, weights, threads)
    data = replace(vector, dtype=dtype.value, sequence=sequence).to_bytes(vectors.find_basis(bundle))
    vectors.write(str(output), data)
    if str(output) == vectors.STREAM:
        _warn_of_little(replacement)
        return
    away = _drift(load, vector, threads) if drift else None
    record: dict[str, Any] = {
        "file": str(output),
        "bytes": len(data),
        "share": replacement.share,
        "standard_error": None if math.isnan(replacement.standard_error) else replacement.standard_error,
        "before": replacement.nats,
        "after": replacement.nats_left,
        "prompt_tokens": replacement.told,
        "bare_tokens": replacement.bare,
        "prompt_seconds_to_first_token": replacement.told_s,
        "bare_seconds_to_first_token": replacement.bare_s,
        **figures,
        "answers": [vars(each) for each in replacement.shown],
    }
    if away is not None:
        record["drift"] = away.record()
    if as_json:
        console.print_json(record)
        return
    _report(record, replacement, away)


def _on_host(
    bundle: Path,
    behaviour: Behaviour,
    sides: tuple[list[str], list[str]],
    options: dict[str, Any],
    weights: Path | None,
    threads: int | None,
) -> tuple[MicroVector, Replacement, dict[str, Any]]:
    from ..train.distill import DistillSettings
    from ..train.distill import distill as distill_prompt

    settings = DistillSettings(**options)
    asked = console.counted(len(sides[0]), "question")
    with console.working(f"asking the prompted model {asked}, then {settings.steps} steps"):
        found = distill_prompt(bundle, behaviour, *sides, settings=settings, weights=weights, workers=threads)
    return found.vector, found.replacement, {"seconds": round(found.seconds, 1)}


def _on_device(
    load: Callable[[], AbstractContextManager[TinyLoraLlama | TinyLoraOnnx]],
    behaviour: Behaviour,
    questions: list[str] | None,
    budget: str,
    seed: int,
    threads: int | None,
) -> tuple[MicroVector, Replacement, dict[str, Any]]:
    from .. import runtime
    from ..tasks.behaviours import load_questions

    amount = runtime.Budget.of(budget)
    asked: list[str] = list(load_questions(split="learn")) if questions is None else questions
    held_out = list(load_questions(split="held_out"))[:_HELD_OUT] if questions is None else None
    with load() as llm, _progress() as report:
        found = runtime.distill(
            llm,
            behaviour,
            asked,
            budget=amount,
            held_out=held_out,
            seed=seed,
            n_threads=threads,
            report=report,
        )
    figures = {
        "questions": found.questions,
        "steps": found.steps,
        "tokens": found.tokens,
        "seconds": round(found.seconds, 1),
    }
    return found.vector, found.replacement, figures


@contextmanager
def _progress() -> Iterator[Any]:
    """Show on a terminal how far it is."""
    with console.stderr().status("asking the prompted model") as status:

        def show(figures: dict[str, Any]) -> None:
            if figures["event"] == "step":
                away = figures.get("divergence")
                now = "too large" if away is None else f"{away:.3f} nats from the prompted model"
                status.update(
                    f"step {figures['step']}: {now}, {figures['tokens']:,} tokens, {figures['seconds']:.0f} s"
                )

        yield show


def _report(record: dict[str, Any], replacement: Replacement, away: Drift | None) -> None:
    told_ms, bare_ms = 1000 * replacement.told_s, 1000 * replacement.bare_s
    closed = f"closes {replacement.share:.0%} of the distance to the prompted model "
    closed += f"({replacement.nats:.3f} nats)"
    if record["standard_error"] is not None:
        closed += f", standard error {replacement.standard_error:.0%}"
    rows = [
        ("wrote", f"{record['file']}: {record['bytes']} bytes"),
        ("held out", closed),
        ("prompt", f"{replacement.bare:.0f} tokens a request instead of {replacement.told:.0f}"),
        ("first token", f"after {bare_ms:.0f} ms here instead of {told_ms:.0f} ms"),
    ]
    if "tokens" in record:
        took = f"{record['tokens']:,} tokens, {record['seconds']:.0f} s, {record['questions']} questions"
        rows.append(("took", took))
    console.facts(rows)
    print_drift(away)
    for each in replacement.shown:
        console.facts(
            [("bare", each.bare), ("prompted", each.prompted), ("vector", each.personalized)],
            title=each.question,
        )
    _warn_of_little(replacement)


def _warn_of_little(replacement: Replacement) -> None:
    """Say on stderr where the vector is no replacement of the prompt."""
    if replacement.share < _LITTLE:
        console.warn(
            f"the vector closes {replacement.share:.0%} of the distance: it does not replace this prompt. A "
            "learned basis (tinylora-edge learn) holds more"
        )


@contextmanager
def _loaded(
    bundle: Path, chosen: EngineName | None, threads: int | None, gpu_layers: int | None
) -> Iterator[TinyLoraLlama | TinyLoraOnnx]:
    """The deployed model; in llama.cpp the answers are generated in contexts of their own."""
    from .. import runtime

    engine = runtime.engine_of(bundle, chosen.value if chosen else None)
    options = engine_options(engine, threads, gpu_layers)
    if engine == EngineName.llama:
        options["n_ctx"] = 64
    with closing(runtime.load(bundle, engine=engine, **options)) as llm:
        yield llm


def _drift(
    load: Callable[[], AbstractContextManager[TinyLoraLlama | TinyLoraOnnx]],
    vector: MicroVector,
    threads: int | None,
) -> Drift | None:
    with console.working("measuring the drift on general prompts"), load() as llm:
        return drift_beside(llm, vector, n_threads=threads)


def _read(path: Path) -> list[str]:
    """Return the different questions of a file, a line each."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainError(f"{path}: not UTF-8 text (byte {error.start + 1}): save it as UTF-8") from None
    # Not at what else `splitlines` takes for an end, such as U+2028, which stands inside of questions.
    lines = (line.strip() for line in text.split("\n"))
    return list(dict.fromkeys(line for line in lines if line))


def _sides(path: Path | None, lines: list[str] | None, count: int) -> tuple[list[str], list[str]]:
    """Return questions to learn on, and others to measure on."""
    from ..tasks.behaviours import load_questions

    if lines is None:
        held_out = load_questions(split="held_out")[: max(1, count // 2)]
        return list(load_questions(split="learn")[:count]), list(held_out)
    if len(lines) < 3:
        raise TrainError(f"{path} has {len(lines)} questions, and at least 3 are needed: a third is held out")
    held = max(1, min(count // 2, len(lines) // 3))
    return lines[held:][:count], lines[:held]
