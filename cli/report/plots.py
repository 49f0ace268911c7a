"""The figures of a report as one PNG, for a slide or a chat: scores, values, and the curve of training."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError
from ...report.curve import sampled_rewards, validations
from ...system import atomic_write
from .records import HeldOut, Prompted, Trained

_COLORS = {"base": "#818b98", "prompt": "#8250df", "vector": "#0969da"}
_INCHES, _DPI = (8.0, 9.0), 150


def check_plots() -> None:
    """Check that plots can be drawn, before anything takes minutes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("a PNG of the figures", "matplotlib", "plot")


def write_plots(
    path: Path,
    title: str,
    held: HeldOut | None,
    prompted: Prompted | None,
    training: Trained,
    numbers: Sequence[float],
    names: Sequence[str],
) -> None:
    """Draw a report's figures into a PNG, all or nothing.

    Args:
        path: of the file.
        title: above the figures.
        held: mean rewards on held-out prompts; None where they were not measured.
        prompted: those of a prompt for the same task; None where none was measured.
        training: the run.
        numbers: the values of the vector.
        names: of its axes; none where they have no names.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[1, 2, 2])
    figure.suptitle(title, fontweight="bold")
    _scores(top, held, prompted)
    _values(middle, numbers, names)
    _curve(bottom, training)
    for axes in (top, middle, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _scores(axes: Any, held: HeldOut | None, prompted: Prompted | None) -> None:
    if held is None:
        axes.set_axis_off()
        axes.text(0, 0.5, "not measured on held-out prompts", transform=axes.transAxes)
        return
    rows = [("with the vector", held.vector, held.vector_standard_error, "vector")]
    if prompted is not None:
        rows.append(("a prompt instead", prompted.prompt, prompted.prompt_standard_error, "prompt"))
    rows.append(("base", held.base, held.base_standard_error, "base"))
    for place, (_, mean, error, tone) in enumerate(rows):
        axes.barh(place, mean, xerr=error, color=_COLORS[tone], height=0.6, ecolor="#1f2328")
        axes.text(0.005, place, f"{mean:.2f}", va="center", color="white", fontweight="bold")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_xlim(min(0.0, *(mean for _, mean, *_ in rows)), max(1.0, *(mean for _, mean, *_ in rows)))
    axes.set_xlabel(f"mean reward of {held.n} prompts never trained on, and its standard error")


def _values(axes: Any, numbers: Sequence[float], names: Sequence[str]) -> None:
    labels = list(names) or [f"v{number}" for number in range(1, len(numbers) + 1)]
    axes.barh(range(len(numbers)), numbers, color=_COLORS["vector"])
    axes.set_yticks(range(len(numbers)), labels)
    axes.invert_yaxis()
    axes.axvline(0, color="#59636e", linewidth=1)
    axes.set_xlabel(f"the {len(numbers)} values")


def _curve(axes: Any, training: Trained) -> None:
    sampled, validation = sampled_rewards(training.curve), validations(training.curve)
    if sampled:
        label = "sampled answers"
        axes.plot(*zip(*sampled, strict=True), "--", color=_COLORS["prompt"], linewidth=1, label=label)
    if validation:
        label = f"greedy answers to {training.validation} prompts held back"
        axes.plot(*zip(*validation, strict=True), "o-", color=_COLORS["vector"], label=label)
    kept = [(step, value) for step, value in validation if step == training.best_step]
    if kept:
        axes.plot(
            *kept[-1], "o", mfc="white", mec=_COLORS["vector"], mew=2, ms=9, label="the step that was kept"
        )
    axes.set_xlabel("training step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("mean reward")
    axes.legend(frameon=False)
