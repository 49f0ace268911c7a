"""`distill`: a prompt becomes a vector."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import TrainError, load_bundle
from ..projection import NUMBERS
from ..vector import FIRST_SEQUENCE
from . import console, figures, vectors
from .options import (
    BundleArgument,
    EngineOption,
    JsonOption,
    NumbersOption,
    OutputOption,
    ThreadsOption,
    load_model,
)

_LITTLE = 0.2  # share of the distance below which the vector is no replacement of the prompt
_COUNT, _HELD_OUT = 32, 16  # questions that a host learns on; those that a vector is measured on


def distill(
    bundle: BundleArgument,
    output: OutputOption,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The prompt, a system message.")] = None,
    examples: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Worked examples: question, answer.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A line each. [default: general ones]")
    ] = None,
    on_device: Annotated[
        bool, typer.Option("--on-device", help="By forward passes, without PyTorch.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="On a device: 90s, 1h, 30ktokens.")
    ] = None,
    numbers: NumbersOption = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the answers.")] = 0,
    weights: Annotated[Path | None, typer.Option(metavar="DIR", help="Hugging Face weights.")] = None,
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
    from ..tasks.behaviours import Behaviour, load_examples, load_questions

    if system is None and examples is None:
        raise typer.BadParameter("say what to distill: --system TEXT, --examples FILE, or both")
    for name, given, device in (
        ("budget", budget, True),
        ("engine", engine, True),
        ("weights", weights, False),
    ):
        if given is not None and on_device is not device:
            how = "alone" if device else "not at all"
            raise typer.BadParameter(f"it goes with --on-device {how}", param_hint=f"--{name}")
    vectors.check_target(output, as_json=as_json)
    behaviour = Behaviour("own", system=system, examples=() if examples is None else load_examples(examples))
    own = None if questions is None else _read(questions)
    shipped = list(load_questions(split="learn")), list(load_questions(split="held_out"))[:_HELD_OUT]
    found: Any
    with console.progress("asking the prompted model") as show:
        if on_device:
            from .. import runtime

            def report(row: dict[str, Any]) -> None:
                if "reward" in row:
                    show(f"step {row['step']}: {-row['reward']:.3f} nats from the prompted model")

            amount = runtime.Budget.of(budget or "5m")
            learn, held = (own, None) if own is not None else shipped
            with closing(load_model(bundle, engine, threads)) as llm:
                found = runtime.distill(
                    llm,
                    behaviour,
                    learn,
                    budget=amount,
                    held_out=held,
                    basis=None if numbers is None else llm.bases.basis(numbers=numbers),
                    seed=seed,
                    n_threads=threads,
                    report=report,
                )
        else:
            from ..train.distill import distill as distill_prompt

            third = 0 if own is None else max(1, min(_HELD_OUT, len(own) // 3))
            learn, held = (own[third:], own[:third]) if own is not None else shipped
            found = distill_prompt(
                bundle,
                behaviour,
                learn[:_COUNT],
                held,
                numbers=numbers or NUMBERS,
                seed=seed,
                weights=weights,
                workers=threads,
            )
        vector = replace(found.vector, dtype="fp32", sequence=FIRST_SEQUENCE)
        data = vector.to_bytes(load_bundle(bundle).bases.of(vector))
        vectors.write(output, data)
        away = None
        if output != vectors.STREAM:
            show("measuring the drift on general prompts")
            with closing(load_model(bundle, engine, threads)) as llm:
                away = figures.drift_beside(llm, vector, n_threads=threads)
    closed = found.replacement
    if output != vectors.STREAM:
        record: dict[str, Any] = {
            "file": output,
            "bytes": len(data),
            "share": closed.share,
            "standard_error": None if math.isnan(closed.standard_error) else closed.standard_error,
            "before": closed.nats,
            "after": closed.nats_left,
            "prompt_tokens": closed.told,
            "bare_tokens": closed.bare,
            "seconds": round(found.seconds, 1),
        }
        record |= {"steps": found.steps, "tokens": found.tokens} if on_device else {}
        drift = {} if away is None else {"drift": away.record()}
        if as_json:
            console.print_json(record | {"answers": [vars(each) for each in closed.shown], **drift})
            return
        console.facts([*console.flat(record), *figures.rows(drift)])
        for each in closed.shown:
            rows = [("bare", each.bare), ("prompted", each.prompted), ("vector", each.personalized)]
            console.facts(rows, title=each.question)
    if closed.share < _LITTLE:
        console.warn(
            f"the vector closes {closed.share:.0%} of the distance: it does not replace this prompt. "
            "Learned directions (tinylora-edge learn) hold more"
        )


def _read(path: Path) -> list[str]:
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
