"""Figures of a measurement on held-out prompts, as `train`, `eval` and `tune` print it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...shared import console, training

if TYPE_CHECKING:
    from ....runtime.evaluation import Comparison, Evaluation


def print_figures(base: Evaluation, personalized: Evaluation | None, comparison: Comparison | None) -> None:
    """Print the mean rewards of base and vector, and their paired comparison."""
    rows = [("base", f"{base.mean:.3f} +- {base.standard_error:.3f} (n = {base.n}, held out)")]
    if personalized is not None and comparison is not None:
        rows += [
            ("vector", f"{personalized.mean:.3f} +- {personalized.standard_error:.3f}"),
            *training.compared(comparison),
        ]
    console.facts(rows)
