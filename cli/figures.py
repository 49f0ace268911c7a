"""What `train`, `tune`, `distill` and `eval` share: a prompt to stand behind, and figures for reading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TrainError
from . import console

if TYPE_CHECKING:
    from .. import MicroVector
    from ..runtime.drift import Drift, Faults
    from ..runtime.evaluation import Comparison, Evaluation
    from ..tasks import Preamble, Task


DRIFT_PROMPTS = 32
"""General prompts on which drift is measured beside a gain; `eval --drift` takes all."""

SystemOption = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="Behind this system prompt: what the vector adds to it."),
]
ExamplesOption = Annotated[
    int | None,
    typer.Option(
        "--examples", metavar="K", min=1, help="Behind K worked examples, drawn from the training split."
    ),
]


def preamble(task: Task, system: str | None, examples: int | None) -> Preamble:
    """Return what `--system` and `--examples` put before every prompt.

    Raises:
        TrainError: the task has no answers for examples, or fewer than asked for.
    """
    from ..tasks import Preamble, draw_examples

    return Preamble(system, () if examples is None else draw_examples(task, examples))


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


def print_figures(base: Evaluation, vector: Evaluation | None, comparison: Comparison | None) -> None:
    """Print the mean rewards of base and vector, and their paired comparison."""
    rows = [("base", f"{mean(base)} (n = {base.n}, held out)")]
    if vector is not None and comparison is not None:
        rows += [("vector", mean(vector)), ("difference", compared(comparison))]
    console.facts(rows)


def print_drift(drift: Drift | None) -> None:
    """Print how far a vector moves the model from its base on general prompts, where that was measured."""
    if drift is None:
        return
    nats = f"{drift.kl:.3f} +- {drift.standard_error:.3f} nats a token"
    console.facts(
        [
            ("drift", f"{nats} from the base on {console.counted(drift.prompts, 'general prompt')}"),
            ("repeating", f"{_new(drift.repeating)} repeat themselves, where the base's did not"),
            ("wrong", f"{_new(drift.wrong)} are wrong, where the base's were right"),
        ]
    )


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


def record(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON takes it."""
    return {
        "n": found.n,
        "mean": found.mean,
        "standard_error": found.standard_error,
        "scores": found.scores.tolist(),
        "answers": found.answers,
    }


def _new(faults: Faults) -> str:
    return f"{faults.new} of {console.counted(faults.judged - faults.base, 'answer')}"
