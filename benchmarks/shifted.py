"""What is left of a gain on shifted prompts: rarer words, other phrasings of the request, longer inputs.

The vectors are those of a study of `science.py`, which keeps the frame of each run: of arms whose basis is
what an export gives. Measurements are kept in a JSON-lines file as they end: a second call goes on.
"""

from __future__ import annotations

import argparse
import base64
import tempfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
from _subjects import export
from science import ARMS

from tinylora_edge import Basis, MicroVector, runtime
from tinylora_edge.runtime.evaluation import Evaluation, compare, evaluate
from tinylora_edge.runtime.llama.batch import batch_for
from tinylora_edge.tasks import load_task

BASES: dict[tuple[str, int], Evaluation] = {}
"""Of each task and number of prompts the base's answers, which are the same whatever the basis."""


def measure(bundle: Path, run: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the figures of a run's vector and of the base on the task's shifted prompts."""
    task = load_task(run["task"], held_out=count)
    with closing(runtime.load(bundle, engine="llama", n_ctx=64)) as llm:
        vector = MicroVector.from_bytes(base64.urlsafe_b64decode(run["frame"]), llm.basis)
        with batch_for(llm, task.shifted, task.max_tokens) as batch:
            own = evaluate(batch, task, vector, samples=task.shifted)
            key = (task.name, count)
            base = BASES[key] if key in BASES else evaluate(batch, task, None, samples=task.shifted)
            BASES[key] = base
    return {"n": base.n, "base": base.mean, "vector": own.mean, **asdict(compare(base, own))}


def known_or_measured(
    run: dict[str, Any], bundle: Path, basis: Basis, kept: Path, count: int
) -> dict[str, Any]:
    """Return the measurement of a run's vector, made and kept where there is none."""
    if run["basis"] != basis.digest:
        raise SystemExit(
            f"{run['arm']}, {run['task']}, seed {run['seed']} was trained on basis {run['basis'][:8]}, and "
            f"this machine exports {basis.id}: measure it where it was trained"
        )
    name = {key: run[key] for key in ("arm", "task", "seed", "frame")} | {"n": count}
    for row in bench.read_study(kept):
        if all(row[key] == name[key] for key in name):
            return row
    found = {**name, **measure(bundle, run, count), "commit": bench.commit()}
    bench.keep(kept, found)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("study", type=Path, metavar="STUDY", help="runs of science.py")
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument(
        "--measured", type=Path, metavar="FILE", help="measurements, kept and gone on with"
    )
    arguments.add_argument("-n", type=int, default=128, help="shifted prompts (%(default)s)")
    arguments.add_argument("--arms", nargs="+", metavar="ARM", help="of the study; all that are exported")
    arguments.add_argument("--seeds", type=int, nargs="+", metavar="N", help="of the study; all unless given")
    options = arguments.parse_args()
    report = bench.Report("shifted", options.json)
    arms = options.arms or [name for name, arm in ARMS.items() if arm.is_exported]
    runs = [
        run
        for run in bench.read_study(options.study)
        if run.get("frame") and run["arm"] in arms and run["seed"] in (options.seeds or [run["seed"]])
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        kept = options.measured or Path(folder) / "measured.jsonl"
        for arm in dict.fromkeys(run["arm"] for run in runs):
            room = Path(folder) / str(list(ARMS).index(arm))
            room.mkdir()
            bundle, basis = export(room, ARMS[arm].shape)
            for run in runs:
                if run["arm"] == arm:
                    found = known_or_measured(run, bundle, basis, kept, options.n)
                    rows.append([run["task"], arm, str(run["seed"]), gain(run), gain(found)])
    headers = ["task", "arm", "seed", "usual prompts", "shifted prompts"]
    report.say("\n" + bench.table(headers, rows))
    report.record |= {"rows": rows}
    report.finish()


def gain(run: dict[str, Any]) -> str:
    return f"{run['base']:.3f}: {run['difference']:+.3f} +- {run['standard_error']:.3f}"


if __name__ == "__main__":
    main()
