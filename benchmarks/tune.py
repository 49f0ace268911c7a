"""What tuning on the device gains: search methods by task and seed, at an equal budget.

Every run tunes a vector in llama.cpp on the deployed file, with forward passes alone, and is measured on
held-out prompts, greedy. Runs are kept in a JSON-lines file as they end: a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
from _subjects import all_of_r, best_prompt, export, learned, tiled

from tinylora_edge import runtime
from tinylora_edge.eval.measure import Evaluation, compare, evaluate
from tinylora_edge.runtime import Budget, RewardLearner, TuneSettings
from tinylora_edge.tasks import load_task

ARMS = {
    "CMA-ES": tiled,
    "CMA-ES, learned": learned,
    "CMA-ES, learned, behind the best prompt": learned,
    "CMA-ES, all of R": all_of_r,
}
SETTINGS = asdict(TuneSettings())  # of every run: those of another version are not gone on with
TASKS, GAIN = ("brevity", "list-lookup"), 0.2  # and what is asked for


def one_run(arm: str, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Tune and measure with one seed, in this process."""
    task, rows = load_task(name, held_out=options.held_out), list[dict[str, Any]]()
    if "behind" in arm:
        task = best_prompt(name).before_task(task)
    with tempfile.TemporaryDirectory() as folder:
        bundle, bases = export(Path(folder), options.weights)
        basis = ARMS[arm](bases)
        with closing(runtime.load(bundle, engine="llama", n_ctx=64)) as llm:
            tuning = RewardLearner(
                llm,
                task.train,
                task.reward,
                shaped=task.shaped,
                basis=basis,
                seed=seed,
                max_tokens=task.max_tokens,
                report=rows.append,
                n_threads=options.threads,
            )
            began = time.process_time()
            found = tuning.run(options.budget)
            processor = time.process_time() - began
            batch = llm.batch(task.held_out, task.max_tokens, sequences=32, n_threads=options.threads)
            with batch:
                base = None if task.preamble else known_base(name, options)
                base = base or evaluate(batch, task, None)
                tuned = evaluate(batch, task, found.vector)
    return {
        "arm": arm,
        "task": name,
        "seed": seed,
        "budget": options.budget,
        "weights": options.weights,
        "threads": options.threads,
        "settings": SETTINGS,
        "basis": basis.digest,
        "commit": bench.commit(),
        "n": base.n,
        "base": base.mean,
        "vector": tuned.mean,
        **asdict(compare(base, tuned)),
        "base_scores": base.scores.tolist(),
        "vector_scores": tuned.scores.tolist(),
        **found.record(),
        "processor_seconds": processor,
        "norm": found.vector.norm,
        "values": found.vector.values.tolist(),
        "checks": [[row["step"], row["check"]] for row in rows if "reward" in row and "check" in row],
        "rewards": [row["reward"] for row in rows if "reward" in row],
        "answers": [answer.strip() for answer in tuned.answers[:8]],
        "cpu": bench.cpu_model(),
        "load_average": bench.load_average(),
    }


def known_base(task: str, options: argparse.Namespace) -> Evaluation | None:
    """The base's scores on the held-out prompts, which are the same for every seed, if a run has them."""
    for run in bench.read_study(options.study):
        same = (run["task"], run["n"], run["weights"]) == (task, options.held_out, options.weights)
        if same and "behind" not in run["arm"]:
            return Evaluation(np.array(run["base_scores"]), [])
    return None


def matches(run: dict[str, Any], options: argparse.Namespace) -> bool:
    """Whether a kept run was made with the same options and settings."""
    wanted = json.loads(json.dumps(SETTINGS)), options.budget, options.held_out, options.weights
    return (run["settings"], run["budget"], run["n"], run["weights"]) == wanted


def run_missing(options: argparse.Namespace, report: bench.Report) -> None:
    """Run what is missing, `--jobs` processes at a time; a run that fails is said and left out."""
    done = {(r["arm"], r["task"], r["seed"]) for r in bench.read_study(options.study) if matches(r, options)}
    # Seeds outermost: whenever the time runs out, arms and tasks have the same number of them.
    wanted = [(arm, task, seed) for seed in options.seeds for task in options.tasks for arm in options.arms]

    def start(run: tuple[str, str, int]) -> None:
        arm, task, seed = run
        command = [sys.executable, __file__, "--only", arm, "--tasks", task, "--seeds", str(seed)]
        command += ["--budget", options.budget, "--study", str(options.study)]
        command += ["--held-out", str(options.held_out), "--weights", options.weights]
        command += ["--threads", str(options.threads)] if options.threads else []
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            report.say(f"FAILED  {arm}, {task}, seed {seed}: {finished.stderr.strip().splitlines()[-1]}")
            return
        found = json.loads(finished.stdout.splitlines()[-1])
        bench.keep(options.study, found)
        report.say(
            f"{arm}, {task}, seed {seed}: {found['base']:.3f} -> {found['vector']:.3f}, {found['tokens']} "
            f"tokens, {found['seconds']:.0f} s"
        )

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(start, [run for run in wanted if run not in done]))


def summary(arm: str, task: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    gains = [run["difference"] for run in runs]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else runs[0]["standard_error"]
    return {
        "arm": arm,
        "task": task,
        "seeds": len(runs),
        "n": runs[0]["n"],
        "base": runs[0]["base"],
        "vectors": [run["vector"] for run in runs],
        "gain": statistics.mean(gains),
        "standard_error": error,
        "reached": sum(gain >= GAIN for gain in gains),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument("--study", type=Path, metavar="FILE", help="runs, kept and gone on with")
    arguments.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    arguments.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    arguments.add_argument("--budget", default="5m", help="of a run: a time, or 100ktokens (%(default)s)")
    arguments.add_argument("--held-out", type=int, default=128, help="prompts measured on (%(default)s)")
    arguments.add_argument("--jobs", type=int, default=1, help="runs at the same time (%(default)s)")
    arguments.add_argument("--threads", type=int, help="cores of a run; all unless given")
    arguments.add_argument("--weights", default="Q4_1", help="of the base: BF16, ... (%(default)s)")
    arguments.add_argument("--only", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    Budget.of(options.budget)
    if options.only:
        print(json.dumps(one_run(options.only, options.tasks[0], options.seeds[0], options)))
        return
    report = bench.Report("tune", options.json)
    with tempfile.TemporaryDirectory() as folder:
        options.study = options.study or Path(folder) / "study.jsonl"
        run_missing(options, report)
        runs = [run for run in bench.read_study(options.study) if matches(run, options)]
    found = [
        summary(arm, task, mine)
        for task in options.tasks
        for arm in options.arms
        if (mine := [r for r in runs if (r["arm"], r["task"]) == (arm, task) and r["seed"] in options.seeds])
    ]
    rows = [
        [
            f["task"],
            f["arm"],
            f"{f['base']:.3f}",
            " ".join(f"{vector:.3f}" for vector in f["vectors"]),
            f"{f['gain']:+.3f} +- {f['standard_error']:.3f}",
            f"{f['reached']} of {f['seeds']}",
        ]
        for f in found
    ]
    if found:
        report.say(f"\n{options.weights}, budget {options.budget}, greedy, n = {found[0]['n']}")
        report.say(bench.table(["task", "arm", "base", "vector of each seed", "gain", "reached"], rows))
    report.record |= {"runs": runs, "summary": found}
    report.finish()


if __name__ == "__main__":
    main()
