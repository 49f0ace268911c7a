"""Preambles on the command line: what stands before every prompt while a vector is found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console

if TYPE_CHECKING:
    from ..tasks import Sample, Task

SystemOption = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="Behind this system prompt: what the vector adds to it."),
]
ShownOption = Annotated[
    int | None,
    typer.Option(
        "--examples", metavar="K", min=1, help="Behind K worked examples, drawn from the training split."
    ),
]
PreambleOption = Annotated[
    Path | None,
    typer.Option(
        "--preamble",
        metavar="FILE",
        help="Behind the prompt of a file, such as eval --against best-prompt --save-preamble FILE writes.",
    ),
]


def behind(task: Task, system: str | None, examples: int | None, file: Path | None, seed: int) -> Task:
    """Return the task, each of whose prompts begins with what the options say.

    Raises:
        TrainError: the task has no answers for examples, the file is no preamble, or it shows a prompt that
            is measured on.
        typer.BadParameter: a file and other options.
    """
    from ..tasks import Preamble
    from ..tasks.candidates import any_candidates, draw_examples

    if file is not None:
        if system is not None or examples is not None:
            raise typer.BadParameter(
                "the file has system prompt and examples: leave --system and --examples out",
                param_hint="--preamble",
            )
        return Preamble.read(file).before_task(task)
    shown: tuple[Sample, ...] = ()
    if examples is not None:
        shown = draw_examples(task, examples, seed=seed, written=any_candidates(task).examples)
    return Preamble(system, shown).before_task(task)


def say_behind(task: Task) -> None:
    """Say what the figures are over, where the task has a preamble."""
    if task.preamble is None:
        return
    count = len(task.preamble["examples"])
    parts = [] if task.preamble["system"] is None else ["its system prompt"]
    parts += [console.counted(count, "worked example")] if count else []
    console.prose(
        f"Base and vector stand behind {' and '.join(parts)}, which belong to the vector: put them before "
        "every request."
    )
