"""`distill`: a prompt becomes a vector."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...shared import console, vectors
from ...shared.options import DriftOption, Dtype, DtypeOption, FrameOption, JsonOption, SequenceOption
from .figures import drift_beside, print_drift

if TYPE_CHECKING:
    from .... import MicroVector
    from ....runtime.drift import Drift

_LITTLE = 0.2
"""Share of the distance below which the vector is no replacement of the prompt."""


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
    count: Annotated[
        int,
        typer.Option("-n", metavar="N", min=2, help="Questions to learn on; half as many measure."),
    ] = 32,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of Adam.")] = 16,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the answers.")] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Hugging Face weights. [default: the bundle's, dequantized]"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Cores to use. [default: all]")
    ] = None,
    dtype: DtypeOption = Dtype.fp32,
    sequence: SequenceOption = 0,
    drift: DriftOption = True,
    as_json: JsonOption = False,
) -> None:
    """Distill a prompt into a vector: without the prompt, the model answers as it does with it.

    It is measured on questions that were not learned on: how much of the distance to the prompted model the
    vector closes, and what it saves in tokens and in time to the first one.

    \b
    Example:
      tinylora-edge distill smollm2-learned --system "Answer in one short sentence." -o short.bin
    """
    from ....tasks.behaviours import Behaviour, load_examples
    from ....train.learned.distillation import DistillSettings
    from ....train.learned.distillation import distill as distill_prompt

    if system is None and examples is None:
        raise typer.BadParameter("say what to distill: --system TEXT, --examples FILE, or both")
    vectors.check_target(str(output), force=False)
    behaviour = Behaviour("own", system=system, examples=() if examples is None else load_examples(examples))
    asked, held_out = _questions(questions, count)
    found = distill_prompt(
        bundle,
        behaviour,
        asked,
        held_out,
        settings=DistillSettings(steps=steps, seed=seed),
        weights=weights,
        workers=threads,
    )
    vector = replace(found.vector, dtype=dtype.value, sequence=sequence)
    data = vector.to_bytes(vectors.find_basis(bundle))
    vectors.write(str(output), data)
    away = _drift(bundle, vector, threads) if drift else None
    record: dict[str, Any] = {
        "file": str(output),
        "bytes": len(data),
        "share": found.share,
        "before": found.before,
        "after": found.after,
        "prompt_tokens": found.told,
        "bare_tokens": found.bare,
        "prompt_seconds_to_first_token": found.told_s,
        "bare_seconds_to_first_token": found.bare_s,
        "seconds": round(found.seconds, 1),
        "answers": [vars(each) for each in found.shown],
    }
    if away is not None:
        record["drift"] = away.record()
    if as_json:
        console.print_json(record)
        return
    told_ms, bare_ms = 1000 * found.told_s, 1000 * found.bare_s
    console.facts(
        [
            ("wrote", f"{output}: {len(data)} bytes"),
            (
                "held out",
                f"closes {found.share:.0%} of the distance to the prompted model ({found.before:.3f} nats)",
            ),
            ("prompt", f"{found.bare:.0f} tokens a request instead of {found.told:.0f}"),
            ("first token", f"after {bare_ms:.0f} ms here instead of {told_ms:.0f} ms"),
        ]
    )
    print_drift(away)
    for each in found.shown:
        console.facts(
            [("bare", each.bare), ("prompted", each.prompted), ("vector", each.personalized)],
            title=each.question,
        )
    if found.share < _LITTLE:
        console.warn(
            f"the vector closes {found.share:.0%} of the distance: it does not replace this prompt. A "
            "learned basis (tinylora-edge learn) holds more"
        )


def _drift(bundle: Path, vector: MicroVector, threads: int | None) -> Drift | None:
    from .... import runtime

    options: dict[str, Any] = {} if threads is None else {"n_threads": threads}
    with closing(runtime.load(bundle, engine="llama", n_ctx=64, **options)) as llm:
        return drift_beside(llm, vector, **options)


def _questions(path: Path | None, count: int) -> tuple[list[str], list[str]]:
    """Return questions to learn on, and others to measure on."""
    from ....errors import TrainError
    from ....tasks.behaviours import load_questions

    if path is None:
        held_out = load_questions(split="held_out")[: max(1, count // 2)]
        return list(load_questions(split="learn")[:count]), list(held_out)
    lines = list(dict.fromkeys(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()))
    if len(lines) < 3:
        raise TrainError(f"{path} has {len(lines)} questions, and at least 3 are needed: a third is held out")
    held = max(1, min(count // 2, len(lines) // 3))
    return lines[held:][:count], lines[:held]
