"""What is left of gains on more held-out prompts than a run measured, and on shifted ones.

Shifted are rarer words, other phrasings of the request, longer inputs. What was trained behind a prompt is
measured behind it, against that prompt alone. The vectors are those of a study of `science.py`, which keeps
the frame of each run: of arms whose basis is what an export gives. With `--best-prompt` the best prompt of
each task is measured, too, without a vector. Measurements are kept in a JSON-lines file as they end: a second
call goes on.
"""

from __future__ import annotations

import argparse
import base64
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
from _records import PROMPTED, prompted
from _subjects import SCALES, best_prompt, export
from science import ARMS

from tinylora_edge import MicroVector, runtime
from tinylora_edge.runtime.evaluation import Evaluation, compare, evaluate
from tinylora_edge.runtime.llama.batch import batch_for
from tinylora_edge.tasks import Task, load_task
from tinylora_edge.wire import frame

USUAL, SHIFTED = "usual", "shifted"
Row = dict[str, Any]


class Measure:
    """Measures frames in one deployed model; the base's answers to a task's prompts serve all of them.

    Args:
        bundle: of the basis that the frames are for, or of the same one with another machine's roundings.
        options: `n`, `workers` and `other_machines` are asked.
    """

    def __init__(self, bundle: Path, options: argparse.Namespace) -> None:
        self._threads = {} if options.workers is None else {"n_threads": options.workers}
        self._llm = runtime.load(bundle, engine="llama", n_ctx=64, **self._threads)
        self._options = options
        self._bases: dict[tuple[str, str, bool], Evaluation] = {}

    def close(self) -> None:
        self._llm.close()

    def vector(self, run: Row) -> MicroVector:
        """Return the vector of a run.

        Raises:
            SystemExit: it is of another basis, and that was not allowed.
        """
        data, basis = base64.urlsafe_b64decode(run["frame"]), self._llm.basis
        if run["basis"] == basis.digest:
            return MicroVector.from_bytes(data, basis)
        if not self._options.other_machines:
            raise SystemExit(
                f"{run['arm']}, {run['task']}, seed {run['seed']} was trained on basis {run['basis'][:8]}, "
                f"and this machine exports {basis.id}: measure it where it was trained, or with "
                "--other-machines"
            )
        values = frame.decode(data, basis.size, run["basis"]).values
        return MicroVector(values.reshape(basis.groups, basis.u))

    def __call__(self, run: Row, prompts: str) -> Row:
        """Return the figures of a run's vector and of the base on usual or shifted prompts.

        A run without a frame is the best prompt alone, against the base without it.
        """
        bare = load_task(run["task"], held_out=self._options.n)
        alone = run["frame"] is None
        behind = not alone and ARMS[run["arm"]].behind
        task = best_prompt(run["task"]).before_task(bare) if alone or behind else bare
        against = bare if alone else task

        def scores(task: Task, vector: MicroVector | None) -> Evaluation:
            samples = task.shifted if prompts == SHIFTED else task.held_out
            with batch_for(self._llm, samples, task.max_tokens, **self._threads) as batch:
                return evaluate(batch, task, vector, samples=samples)

        own = scores(task, None if alone else self.vector(run))
        key = (task.name, prompts, behind)
        if key not in self._bases:
            self._bases[key] = scores(against, None)
        base = self._bases[key]
        measured = {"n": base.n, "base": base.mean, "vector": own.mean, **asdict(compare(base, own))}
        return measured | {"measured_with": self._llm.basis.digest, "commit": bench.commit()}


def measured(runs: list[Row], kept: Path, options: argparse.Namespace) -> Iterator[tuple[Row, Row]]:
    """Yield each run, and what its vector gains: as it is known, or measured now and kept."""
    with tempfile.TemporaryDirectory() as folder:
        for place, arm in enumerate(dict.fromkeys(run["arm"] for run in runs)):
            measure = None
            try:
                for run in (run for run in runs if run["arm"] == arm):
                    for prompts in options.prompts:
                        name = {key: run[key] for key in ("arm", "task", "seed", "frame")}
                        name |= {"prompts": prompts, "n": options.n}
                        found = next((row for row in bench.read_study(kept) if row | name == row), None)
                        if found is None:
                            if measure is None:
                                (room := Path(folder) / str(place)).mkdir()
                                shape = SCALES if arm == PROMPTED else ARMS[arm].shape
                                measure = Measure(export(room, shape)[0], options)
                            found = {**name, **measure(run, prompts)}
                            bench.keep(kept, found)
                        yield run, found
            finally:
                if measure is not None:
                    measure.close()


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("study", type=Path, metavar="STUDY", help="runs of science.py")
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument(
        "--measured", type=Path, metavar="FILE", help="measurements, kept and gone on with"
    )
    arguments.add_argument("-n", type=int, default=256, help="prompts (%(default)s)")
    arguments.add_argument(
        "--prompts", nargs="+", choices=(USUAL, SHIFTED), default=[USUAL, SHIFTED], help="(both)"
    )
    arguments.add_argument("--arms", nargs="+", metavar="ARM", help="of the study; all that are exported")
    arguments.add_argument("--tasks", nargs="+", metavar="TASK", help="of the study; all unless given")
    arguments.add_argument("--seeds", type=int, nargs="+", metavar="N", help="of the study; all unless given")
    arguments.add_argument(
        "--other-machines",
        action="store_true",
        help="also vectors from machines whose factors have other roundings, and the basis so another digest",
    )
    arguments.add_argument("--best-prompt", action="store_true", help="measure that of each task, too")
    arguments.add_argument("--workers", type=int, help="cores; all unless given")
    options = arguments.parse_args()
    report = bench.Report("held_out", options.json)
    arms = options.arms or [name for name, arm in ARMS.items() if arm.is_exported]
    runs = [
        run
        for run in bench.read_study(options.study)
        if run.get("frame")
        and run["arm"] in arms
        and run["task"] in (options.tasks or [run["task"]])
        and run["seed"] in (options.seeds or [run["seed"]])
    ]
    if options.best_prompt:
        runs += [run for run in prompted() if run["task"] in (options.tasks or [run["task"]])]
    if not runs:
        known = sorted({(run["task"], run["arm"]) for run in bench.read_study(options.study)})
        raise SystemExit(
            f"{options.study} has no vector of these tasks, arms and seeds; it has "
            + ("; ".join(f"{task}: {arm}" for task, arm in known) or "no runs")
        )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        kept = options.measured or Path(folder) / "measured.jsonl"
        for run, found in measured(runs, kept, options):
            names = [run["task"], run["arm"], str(run["seed"])]
            rows.append([*names, gain(run), found["prompts"], gain(found)])
            report.say(" | ".join(rows[-1]))
    headers = ["task", "arm", "seed", "as the run measured", "prompts", f"n = {options.n}"]
    report.say("\n" + bench.table(headers, rows))
    report.record |= {"rows": rows}
    report.finish()


def gain(run: Row) -> str:
    return f"{run['base']:.3f}: {run['difference']:+.3f} +- {run['standard_error']:.3f}"


if __name__ == "__main__":
    main()
