"""What `train`, `tune`, `distill` and `eval` share: a prompt to stand behind, and figures for reading."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TrainError
from . import console

if TYPE_CHECKING:
    from .. import MicroVector
    from ..runtime.drift import Drift
    from ..runtime.evaluation import Evaluation
    from ..tasks import Preamble, Task


DRIFT_PROMPTS = 32
"""General prompts on which drift is measured beside a gain; `eval --drift` takes all."""

SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="Behind this system prompt.")
]
ExamplesOption = Annotated[
    int | None,
    typer.Option("--examples", metavar="K", min=1, help="Behind K worked examples of the training split."),
]


def preamble(task: Task, system: str | None, examples: int | None) -> Preamble:
    """Return what `--system` and `--examples` put before every prompt."""
    from ..tasks import Preamble, draw_examples

    return Preamble(system, () if examples is None else draw_examples(task, examples))


def mean(found: Evaluation) -> str:
    """Return a mean reward with its standard error."""
    return f"{found.mean:.3f} +- {found.standard_error:.3f}"


def compared(found: Any) -> str:
    """Return a paired comparison for reading: a `Comparison`, or a record with its figures."""
    return (
        f"{found.difference:+.3f} +- {found.standard_error:.3f}, paired: "
        f"{console.counted(found.gained, 'prompt')} gained, {found.lost} lost, McNemar p = {found.p:.2g}"
    )


def verdict(found: Any) -> str:
    """Return what a paired comparison shows, and no more than that."""
    if not found.difference or abs(found.difference) <= 2 * found.standard_error:
        return "The difference is within two standard errors: it may be chance."
    return (
        f"The vector {'raises' if found.difference > 0 else 'lowers'} the reward, beyond two standard errors."
    )


def rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the record of a run says of its vector, for reading: gain, drift, and what it is behind."""
    found = []
    if "held_out" in record:
        held = SimpleNamespace(**record["held_out"])
        found += [
            ("base", f"{held.base:.3f} +- {held.base_standard_error:.3f} (n = {held.n}, held out)"),
            ("vector", f"{held.vector:.3f} +- {held.vector_standard_error:.3f}"),
            ("difference", compared(held)),
            ("", verdict(held)),
        ]
    if "drift" in record:
        drift = SimpleNamespace(**record["drift"])
        error = "" if drift.standard_error is None else f" +- {drift.standard_error:.3f}"
        where = f"from the base on {console.counted(drift.prompts, 'general prompt')}"
        faults = f"{drift.repeating['new']} answers repeat themselves now, {drift.wrong['new']} are wrong now"
        found.append(("drift", f"{drift.kl:.3f}{error} nats a token {where}; {faults}"))
    if "preamble" in record:
        behind = (
            "base and vector stand behind a prompt, which belongs to the vector: put it before every request"
        )
        found.append(("preamble", behind))
    return found


def drift_beside(llm: Any, vector: MicroVector, **options: Any) -> Drift | None:
    """Measure the drift of a vector that was just found; where that is not possible, say so."""
    from ..runtime import measure_drift

    try:
        return measure_drift(llm, vector, count=DRIFT_PROMPTS, **options)
    except TrainError as error:
        warn_of_drift(str(error))
        return None


def warn_of_drift(why: str) -> None:
    """Say that the drift could not be measured, and why."""
    console.warn(f"the drift on general prompts was not measured: {why}")
