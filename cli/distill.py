"""`distill`: a prompt becomes a vector."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TrainError
from ..vector import FIRST_SEQUENCE
from . import console, figures, vectors
from .options import EngineOption, JsonOption, OutputOption, ThreadsOption, load_quietly

if TYPE_CHECKING:
    from ..runtime import Replacement
    from ..tasks.behaviours import Behaviour
    from ..vector import MicroVector

_LITTLE = 0.2
"""Share of the distance below which the vector is no replacement of the prompt."""

_COUNT, _HELD_OUT = 32, 16
"""Questions that a host learns on; shipped ones that a vector is measured on."""


def distill(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to make a vector for.")],
    output: OutputOption,
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
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the answers.")] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Hugging Face weights. [default: the bundle's, dequantized]"),
    ] = None,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Distill a prompt into a vector: without the prompt, the model answers as it does with it.

    It is measured on questions that were not learned on: how much of the distance to the prompted model the
    vector closes, and what it saves in tokens. By default it takes gradients, with PyTorch on a host;
    with --on-device forward passes alone, in the engine that runs the model.

    \b
    Examples:
      tinylora-edge distill out/demo --system "Answer in one short sentence." -o short.bin
      tinylora-edge distill out/demo --system "Talk like a pirate." -o p.bin --on-device --budget 5m
    """
    from ..tasks.behaviours import Behaviour, load_examples

    if system is None and examples is None:
        raise typer.BadParameter("say what to distill: --system TEXT, --examples FILE, or both")
    for name, given, device in (
        ("--budget", budget, True),
        ("--engine", engine, True),
        ("--weights", weights, False),
    ):
        if given is not None and on_device is not device:
            raise typer.BadParameter(
                f"it goes with --on-device {'alone' if device else 'not at all'}", param_hint=name
            )
    vectors.check_target(output, as_json=as_json)
    behaviour = Behaviour("own", system=system, examples=() if examples is None else load_examples(examples))
    own = None if questions is None else _read(questions)
    with console.progress("asking the prompted model") as show:
        if on_device:
            made = _on_device(bundle, engine, threads, behaviour, own, budget or "5m", seed, show)
        else:
            made = _on_host(bundle, behaviour, own, seed, weights, threads)
        vector, replacement, cost = made
        vector = replace(vector, dtype="fp32", sequence=FIRST_SEQUENCE)
        data = vector.to_bytes(vectors.find_basis(bundle))
        vectors.write(output, data)
        away = None
        if output != vectors.STREAM:
            show("measuring the drift on general prompts")
            with closing(load_quietly(bundle, engine, threads)) as llm:
                away = figures.drift_beside(llm, vector, n_threads=threads)
    if output != vectors.STREAM:
        record: dict[str, Any] = {
            "file": output,
            "bytes": len(data),
            "share": replacement.share,
            "standard_error": None if math.isnan(replacement.standard_error) else replacement.standard_error,
            "before": replacement.nats,
            "after": replacement.nats_left,
            "prompt_tokens": replacement.told,
            "bare_tokens": replacement.bare,
            **cost,
            "answers": [vars(each) for each in replacement.shown],
        }
        if away is not None:
            record["drift"] = away.record()
        if as_json:
            console.print_json(record)
            return
        _print(record, replacement)
        figures.print_drift(away)
        for each in replacement.shown:
            console.facts(
                [("bare", each.bare), ("prompted", each.prompted), ("vector", each.personalized)],
                title=each.question,
            )
    if replacement.share < _LITTLE:
        console.warn(
            f"the vector closes {replacement.share:.0%} of the distance: it does not replace this prompt. A "
            "learned basis (tinylora-edge learn) holds more"
        )


def _on_host(
    bundle: Path,
    behaviour: Behaviour,
    own: list[str] | None,
    seed: int,
    weights: Path | None,
    threads: int | None,
) -> tuple[MicroVector, Replacement, dict[str, Any]]:
    from ..tasks.behaviours import load_questions
    from ..train.distill import distill as distill_prompt

    if own is None:
        learn, held = list(load_questions(split="learn")[:_COUNT]), list(load_questions(split="held_out"))
    else:
        third = max(1, min(_HELD_OUT, len(own) // 3))
        learn, held = own[third:], own[:third]
    sides = learn[:_COUNT], held[:_HELD_OUT]
    found = distill_prompt(bundle, behaviour, *sides, seed=seed, weights=weights, workers=threads)
    return found.vector, found.replacement, {"seconds": round(found.seconds, 1)}


def _on_device(
    bundle: Path,
    engine: Any,
    threads: int | None,
    behaviour: Behaviour,
    own: list[str] | None,
    budget: str,
    seed: int,
    show: console.Show,
) -> tuple[MicroVector, Replacement, dict[str, Any]]:
    from .. import runtime
    from ..tasks.behaviours import load_questions

    def report(row: dict[str, Any]) -> None:
        if "reward" in row:
            away = f"{-row['reward']:.3f} nats from the prompted model"
            show(f"step {row['step']}: {away}, {row['tokens']:,} tokens, {row['seconds']:.0f} s")

    amount = runtime.Budget.of(budget)
    with closing(load_quietly(bundle, engine, threads)) as llm:
        found = runtime.distill(
            llm,
            behaviour,
            list(load_questions(split="learn")) if own is None else own,
            budget=amount,
            held_out=list(load_questions(split="held_out"))[:_HELD_OUT] if own is None else None,
            seed=seed,
            n_threads=threads,
            report=report,
        )
    cost = {
        "steps": found.steps,
        "tokens": found.tokens,
        "seconds": round(found.seconds, 1),
    }
    return found.vector, found.replacement, cost


def _print(record: dict[str, Any], replacement: Replacement) -> None:
    closed = f"closes {replacement.share:.0%} of the distance to the prompted model "
    closed += f"({replacement.nats:.3f} nats)"
    if record["standard_error"] is not None:
        closed += f", standard error {replacement.standard_error:.0%}"
    rows = [
        ("wrote", f"{record['file']}: {record['bytes']} bytes"),
        ("held out", closed),
        ("prompt", f"{replacement.bare:.0f} tokens a request instead of {replacement.told:.0f}"),
    ]
    if "tokens" in record:
        took = f"{record['tokens']:,} tokens, {record['seconds']:.0f} s, {record['steps']} steps"
        rows.append(("took", took))
    console.facts(rows)


def _read(path: Path) -> list[str]:
    """Return the different questions of a file, a line each: at least three, since a third is held out."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainError(f"{path}: not UTF-8 text (byte {error.start + 1}): save it as UTF-8") from None
    # Not at what else `splitlines` takes for an end, such as U+2028, which stands inside of questions.
    lines = (line.strip() for line in text.split("\n"))
    found = list(dict.fromkeys(line for line in lines if line))
    if len(found) < 3:
        raise TrainError(f"{path} has {len(found)} questions, and at least 3 are needed: a third is held out")
    return found
