"""What a run leaves on disk, and what it takes of the machine: the same for every engine that trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._system import __version__, atomic_write
from ..basis import Basis
from ..tasks import Task
from ..vector import MicroVector
from .trainer import Report

if TYPE_CHECKING:
    from .run import Options, Outcome


@contextmanager
def metrics_file(folder: Path, done: int, report: Report) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write metrics as JSONL and, where tensorboard is installed, as its events."""
    path = folder / "metrics.jsonl"
    kept = []
    if done and path.exists():  # a resumed run repeats the steps after its checkpoint
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        kept = [row for row in rows if row.get("step", 0) <= done]
    with atomic_write(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in kept).encode())
    board = None
    with suppress(ImportError):
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(folder / "tensorboard"), purge_step=done)
    with open(path, "a", encoding="utf-8") as out:

        def write(metrics: dict[str, Any]) -> None:
            out.write(json.dumps(metrics) + "\n")
            out.flush()
            if board is not None and "event" not in metrics:
                for key, value in metrics.items():
                    if isinstance(value, int | float):
                        board.add_scalar(key, value, metrics["step"])
            report(metrics)

        try:
            yield write
        finally:
            if board is not None:
                board.close()


def write_result(
    output: Path,
    folder: Path,
    vector: MicroVector,
    basis: Basis,
    task: Task,
    options: Options,
    outcome: Outcome,
    **more: Any,
) -> None:
    """Write the manifest, with `more` keys, and then the frame: who sees the frame finds its manifest."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    manifest: dict[str, Any] = {
        "tool": f"tinylora-edge {__version__}",
        "task": task.name,
        "basis": basis.digest,
        "values": vector.values.reshape(-1).tolist(),
        "dtype": vector.dtype,
        "sequence": vector.sequence,
        "options": asdict(options),
        **more,
        "result": {k: v for k, v in asdict(outcome.result).items() if k != "vector"},
        "curve": rows,
    }
    base, personalized, comparison = outcome.base, outcome.personalized, outcome.comparison
    if base is not None and personalized is not None and comparison is not None:
        manifest["held_out"] = {
            "n": base.n,
            "base": base.mean,
            "base_standard_error": base.standard_error,
            "vector": personalized.mean,
            "vector_standard_error": personalized.standard_error,
            **asdict(comparison),
        }
    with atomic_write(output.with_name(f"{output.name}.json")) as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())
    with atomic_write(output) as file:
        file.write(vector.to_bytes(basis))
