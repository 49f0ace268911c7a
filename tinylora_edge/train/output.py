"""The files of a run: its folder, metrics, manifest and frame, the same for every engine that trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..basis import Basis
from ..documents import parse_json
from ..errors import TrainError
from ..runtime.tuning.settings import Report
from ..system import __version__, atomic_write
from ..tasks import Task
from ..vector import MicroVector
from .options import Options, Outcome

_SECONDS = ("draw_s", "learn_s", "validate_s", "trial_s", "step_s")
"""The metrics that say how long a part took. Their sum is what the vector cost, interruptions left out."""


@contextmanager
def run_folder(output: Path, *inside: str) -> Iterator[Path]:
    """Make the folder of a run's files, `output`.run, and in it the folders `inside`.

    Of what was made here, whatever is still empty at the end is removed: a run that was refused leaves
    nothing, and one that was interrupted keeps its files.
    """
    folder = output.with_name(f"{output.name}.run")
    wanted = [folder / name for name in inside] + [folder, *folder.parents]
    made = [path for path in wanted if not path.exists()]
    try:
        for path in reversed(made):
            path.mkdir(exist_ok=True)
        yield folder
    finally:
        for path in made:
            with suppress(OSError):  # it holds something, or is gone
                path.rmdir()


@contextmanager
def metrics_file(folder: Path, done: int, report: Report) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write metrics as JSONL, and report them.

    No file is made or changed before the first metrics come: until then a run may still be refused.

    Args:
        folder: of the run.
        done: steps; a resumed run repeats those after its checkpoint, so their metrics are dropped.
        report: called with all metrics that are written.
    """
    with ExitStack() as stack:
        files: list[Callable[[dict[str, Any]], None]] = []

        def write(metrics: dict[str, Any]) -> None:
            if not files:
                files.append(stack.enter_context(_open(folder, done)))
            files[0](metrics)
            report(metrics)

        yield write


@contextmanager
def _open(folder: Path, done: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    path = folder / "metrics.jsonl"
    kept = [row for row in _rows(path) if row.get("step", 0) <= done] if done else []
    with atomic_write(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in kept).encode())
    with open(path, "a", encoding="utf-8") as out:

        def write(metrics: dict[str, Any]) -> None:
            out.write(json.dumps(metrics) + "\n")
            out.flush()

        yield write


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        # What a killed run was about to write, or a full disk did not take, has no end of line.
        whole = path.read_bytes().rpartition(b"\n")[0]
        rows = [parse_json(line) for line in whole.splitlines()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no object")
    except ValueError as error:
        raise TrainError(
            f"{path} is damaged: {error}. Remove it, and the run begins its record anew"
        ) from None
    return rows


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
    curve = _rows(folder / "metrics.jsonl")
    manifest: dict[str, Any] = {
        "tool": f"tinylora-edge {__version__}",
        "task": task.name,
        **({} if task.preamble is None else {"preamble": task.preamble}),
        "basis": basis.digest,
        "values": vector.values.reshape(-1).tolist(),
        "dtype": vector.dtype,
        "sequence": vector.sequence,
        "options": asdict(options),
        **more,
        "result": {k: v for k, v in asdict(outcome.result).items() if k != "vector"},
        "seconds": round(sum(row.get(key, 0.0) for row in curve for key in _SECONDS), 1),
        "curve": curve,
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
    if outcome.drift is not None:
        manifest["drift"] = outcome.drift.record()
    with atomic_write(output.with_name(f"{output.name}.json")) as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())
    with atomic_write(output) as file:
        file.write(vector.to_bytes(basis))
