"""Figures of a measurement, as `train`, `eval` and `tune` print it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import console, training

DRIFT_PROMPTS = 32
"""General prompts on which drift is measured beside a gain; `eval --drift` takes all."""

if TYPE_CHECKING:
    from .. import MicroVector
    from ..runtime.drift import Drift, Faults
    from ..runtime.evaluation import Comparison, Evaluation


def print_figures(base: Evaluation, personalized: Evaluation | None, comparison: Comparison | None) -> None:
    """Print the mean rewards of base and vector, and their paired comparison."""
    rows = [("base", f"{base.mean:.3f} +- {base.standard_error:.3f} (n = {base.n}, held out)")]
    if personalized is not None and comparison is not None:
        rows += [
            ("vector", f"{personalized.mean:.3f} +- {personalized.standard_error:.3f}"),
            *training.compared(comparison),
        ]
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
    from ..runtime import drift

    return drift.drift_beside(llm, vector, count=DRIFT_PROMPTS, complain=training.warn_of_drift, **options)


def _new(faults: Faults) -> str:
    return f"{faults.new} of {console.counted(faults.judged - faults.base, 'answer')}"
