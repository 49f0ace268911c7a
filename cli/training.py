"""Reports on training: how far a run is, and what a comparison found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.progress import SpinnerColumn, TimeRemainingColumn

from . import console

if TYPE_CHECKING:
    from ..tasks import Preamble


_SHOWN = 160
"""Characters of a system prompt that are shown."""


class PairedFigures(Protocol):
    """The figures of a paired comparison: those of `runtime.evaluation.Comparison`, wherever they stand."""

    @property
    def difference(self) -> float:
        """Mean reward with the vector, less that of the base."""

    @property
    def standard_error(self) -> float:
        """Standard error of the difference."""

    @property
    def gained(self) -> int:
        """Prompts that the base missed and the vector does not."""

    @property
    def lost(self) -> int:
        """Prompts that the vector misses and the base did not."""

    @property
    def p(self) -> float:
        """McNemar's exact p."""


def compared(found: PairedFigures) -> list[tuple[str, str]]:
    """Return the figures of a paired comparison, labelled, for reading."""
    return [
        ("difference", f"{found.difference:+.3f} +- {found.standard_error:.3f}, paired"),
        (
            "test",
            f"{console.counted(found.gained, 'prompt')} gained, {found.lost} lost: McNemar p = {found.p:.2g}",
        ),
    ]


def prompt_text(preamble: Preamble) -> str:
    """Return a preamble for reading: a system prompt, cut where it is long, and the first example."""
    parts = []
    if preamble.system is not None:
        text = " ".join(preamble.system.split())
        parts.append(repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."))
    if preamble.examples:
        first = preamble.examples[0]
        parts.append(
            f"{len(preamble.examples)} worked examples, the first {first.text!r} with {first.answer!r}"
        )
    return " and ".join(parts) or "none, since no prompt did better"


def warn_of_drift(why: str) -> None:
    """Say that the drift could not be measured, and why."""
    console.warn(f"the drift on general prompts was not measured: {why}")


@contextmanager
def progress(steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show reward, validation, speed and time left on a terminal; events anywhere."""
    columns = (
        SpinnerColumn(),
        console.words("step {task.completed}/{task.total}"),
        console.bar(beside=66),
        console.words("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with console.bars(*columns) as bar:
        task = bar.add_task("", total=steps, figures="loading, and scoring the start")
        known: dict[str, str] = {}

        def show(metrics: dict[str, Any]) -> None:
            for key, name in (("reward", "reward"), ("validation", "held back")):
                if key in metrics:
                    known[key] = f"{name} {metrics[key]:.2f}"
            if metrics.get("event") == "start":
                bar.update(task, figures=f"{known.get('validation', '')}  drawing the first answers")
            if metrics.get("event") == "trial":
                tried = f"{metrics['multiple']:g} times the step size: {known['validation']}"
                bar.update(task, figures=f"trying step sizes, {tried}")
            if metrics.get("event") == "back-off":
                console.warn(
                    f"validation fell to {metrics['validation']:.3f} from {metrics['best']:.3f}: went back "
                    f"to the best vector and halved the step size to {metrics['lr']:.2g}"
                )
            if metrics.get("event") == "no drift":
                warn_of_drift(metrics["why"])
            if "event" in metrics:
                return
            figures = "  ".join(known[key] for key in ("reward", "validation") if key in known)
            if metrics["step"] >= steps:
                figures += "  measuring on held-out prompts"
            elif "draw_s" in metrics and "tokens" in metrics:  # TRL reports no seconds
                seconds = metrics["draw_s"] + metrics.get("learn_s", 0.0)
                figures += f"  {metrics['tokens'] / max(seconds, 1e-9):.0f} tokens/s"
            bar.update(task, completed=metrics["step"], figures=figures)

        yield show
