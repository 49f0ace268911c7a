"""The measuring at the end of a run, in the deployed model, and the record that is written of it all."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from ..basis import Basis
from ..documents import write_json
from ..errors import TrainError
from ..runtime.batch import Batch
from ..runtime.drift import measure_drift
from ..runtime.evaluation import Report, evaluate, held_out
from ..system import __version__, atomic_write, cores
from ..tasks import Task
from ..vector import MicroVector
from .options import Options, Outcome

_SECONDS = ("draw_s", "learn_s", "validate_s", "step_s")
"""The metrics that say how long a part took. Their sum is what the vector cost, interruptions left out."""


def measured(
    outcome: Outcome,
    llm: Any,
    batch: Batch,
    task: Task,
    vector: MicroVector,
    options: Options,
    report: Report,
) -> Outcome:
    """Add the held-out prompts, and the drift where it can be measured, both in the deployed model."""
    base, personalized = evaluate(batch, task, None), evaluate(batch, task, vector)
    drift, threads = None, options.workers or cores()
    try:
        if options.drift:
            drift = measure_drift(
                llm, vector, count=options.drift, sequences=options.sequences, n_threads=threads
            )
    except TrainError as error:
        report({"event": "no drift", "why": str(error)})
    return replace(outcome, base=base, personalized=personalized, drift=drift)


def write_result(
    vector: MicroVector,
    basis: Basis,
    task: Task,
    options: Options,
    outcome: Outcome,
    curve: list[dict[str, Any]],
    **more: Any,
) -> None:
    """Write the manifest, with `more` keys, and then the frame: who sees the frame finds its manifest."""
    manifest: dict[str, Any] = {
        "tool": f"tinylora-edge {__version__}",
        "task": task.name,
        **({} if task.preamble is None else {"preamble": task.preamble}),
        "basis": basis.digest,
        "projection": basis.projection.descriptor,
        "numbers": basis.size,
        "dtype": vector.dtype,
        "sequence": vector.sequence,
        "options": options.record(),
        **more,
        "result": {k: v for k, v in asdict(outcome.result).items() if k != "vector"},
        "seconds": round(sum(row.get(key, 0.0) for row in curve for key in _SECONDS), 1),
        "curve": curve,
    }
    if outcome.base is not None and outcome.personalized is not None:
        manifest["held_out"] = held_out(outcome.base, outcome.personalized)
    if outcome.drift is not None:
        manifest["drift"] = outcome.drift.record()
    output = outcome.path
    write_json(output.with_name(f"{output.name}.json"), manifest)
    with atomic_write(output) as file:
        file.write(vector.to_bytes(basis))
