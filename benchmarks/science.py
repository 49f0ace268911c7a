"""What the shape of a basis is worth: learned directions against random ones, RL against SFT, ranks, tyings,
u x G, dtypes at equal bytes; and what there is to gain at all, by all entries of R and by plain LoRAs.

Every arm trains on the same task with the same settings, once a seed, and is measured on the same held-out
prompts in the deployed file. The bounds, whose numbers are many more than 13, first try step sizes, since the
rule for the step size was found for v (`TrainSettings.trials`). Runs are kept in a JSON-lines file as they
end: a second call goes on.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import evidence
import numpy as np
from _records import ALL
from _subjects import ALL_OF_R, best_prompt, export
from _varied import varied

from tinylora_edge import Basis, save_basis
from tinylora_edge.exporters import ExportSettings as Shape
from tinylora_edge.modules import LIGHT
from tinylora_edge.tasks import Task, load_task
from tinylora_edge.tasks.behaviours import Behaviour, load_behaviours
from tinylora_edge.train import Options, TrainSettings, train
from tinylora_edge.train.learned import learn
from tinylora_edge.train.learned.distillation import Distilled, distill


@dataclass(frozen=True)
class Arm:
    """One way to have numbers trained.

    Attributes:
        shape: of the basis.
        method: of training.
        wire: dtype of the frame.
        all_entries: train every entry of R (`Basis.with_all_entries`).
        lora: train a plain LoRA of this rank on the basis's modules.
        behind: train behind the best prompt that a search found for the task (`prompts.py`).
        after: begin with that prompt distilled into a vector, and not with the base.
        prior: search in the coordinates in which the basis's prior is round, where it has one.
        tiles: so many random tiles beside the first `kept` learned directions, and no prior.
        kept: see `tiles`.
        far: learn directions from the behaviours alone that are near no task (`Behaviour.near`), and not from
            all, as those are that are shipped.
        varied: train on prompts of many phrasings, of which the task's usual prompts have one (`_varied.py`).
        trials: step sizes to choose from, as multiples of what random directions ask for: with many numbers
            the gradient's own direction leads farther than those.
    """

    shape: Shape = field(default_factory=Shape)
    method: str = "grpo"
    wire: str = "fp32"
    all_entries: bool = False
    lora: int | None = None
    behind: bool = False
    after: bool = False
    prior: bool = True
    tiles: int = 0
    kept: int = 0
    far: bool = False
    varied: bool = False
    trials: tuple[float, ...] = ()

    @property
    def is_bound(self) -> bool:
        """Whether it is there to be compared with, and has no vector to ship."""
        return self.all_entries or self.lora is not None

    @property
    def is_exported(self) -> bool:
        """Whether an export of its shape is all of its basis."""
        return not (self.is_bound or self.far or self.tiles or self.after) and self.prior


ARMS: dict[str, Arm] = {
    "learned, as shipped": Arm(Shape(projection="learned")),
    "learned, light": Arm(Shape(projection="learned", targets=(LIGHT,))),
    "learned: n = 13, dense": Arm(far=True),
    "default: r = 2, u = 1, G = 13, tiled": Arm(),
    "as shipped, behind the best prompt": Arm(Shape(projection="learned"), behind=True),
    "learned, behind the best prompt": Arm(far=True, behind=True),
    "the paper's, behind the best prompt": Arm(behind=True),
    "learned, after the best prompt": Arm(Shape(projection="learned"), after=True),
    "learned, without its prior": Arm(far=True, prior=False),
    "6 learned, 7 random tiles": Arm(far=True, kept=6, tiles=7),
    "13 learned, 13 random tiles": Arm(far=True, kept=13, tiles=13),
    "SFT on the answers": Arm(method="sft"),
    "SFT on the answers, learned": Arm(Shape(projection="learned"), method="sft"),
    "r = 1": Arm(Shape(rank=1)),
    "r = 4": Arm(Shape(rank=4)),
    "r = 8": Arm(Shape(rank=8)),
    "structured": Arm(Shape(tying="structured")),
    "full: u = 13, G = 1": Arm(Shape(u=13, groups=1, tying="full")),
    "bf16, G = 13 (26 bytes)": Arm(wire="bf16"),
    "bf16, G = 26 (52 bytes)": Arm(Shape(groups=26), wire="bf16"),
    # Where all of R had four step sizes to choose from, it took the one that `train` takes, as these do.
    "G = 52": Arm(Shape(groups=52)),
    "G = 210": Arm(Shape(groups=210)),
    ALL: Arm(ALL_OF_R, wire="int8"),
    f"{ALL}, longer steps": Arm(ALL_OF_R, wire="int8", trials=(1.0, 2.0, 4.0)),
    f"{ALL}, behind the best prompt": Arm(ALL_OF_R, wire="int8", behind=True),
    f"{ALL}, varied prompts": Arm(ALL_OF_R, wire="int8", varied=True),
    "learned, as shipped, varied prompts": Arm(Shape(projection="learned"), varied=True),
    "R, all 840 numbers": Arm(all_entries=True, trials=(0.03, 0.1, 0.3, 1.0)),
    "LoRA r = 1": Arm(lora=1, trials=(0.01, 0.03, 0.1, 0.3)),
    "LoRA r = 8": Arm(lora=8, trials=(0.01, 0.03, 0.1, 0.3)),
}


def one_run(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one arm with one seed, in this process."""
    arm, rows = ARMS[name], list[dict[str, Any]]()
    task = load_task(options.task, seed=seed, held_out=options.held_out)
    if arm.varied:
        task = varied(task, seed)
    if arm.behind:
        task = best_prompt(options.task).before_task(task)
    settings = TrainSettings(steps=options.steps, seed=seed, trials=arm.trials)
    chosen = Options(
        method=arm.method,
        settings=settings,
        wire=arm.wire,
        workers=options.workers,
        drift=0,
        lora=arm.lora,
    )
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bundle, exported = export(Path(folder), arm.shape)
        basis = changed(exported, arm, bundle, options)
        if basis is not exported:
            save_basis(basis, bundle / "basis.gguf")
        began = distilled(bundle, task, options) if arm.after else None
        if began is not None:
            chosen = replace(chosen, start=tuple(map(float, began.vector.values.ravel())))
        outcome = train(bundle, task, Path(folder) / "v.bin", options=chosen, report=rows.append)
        data = outcome.path.read_bytes()
    trials = [row for row in rows if row.get("event") == "trial"]
    validated = [row for row in rows if "validation" in row and row.get("event") in (None, "start")]
    comparison = outcome.comparison
    assert comparison is not None
    assert outcome.base is not None
    assert outcome.personalized is not None
    return {
        "arm": name,
        "seed": seed,
        "task": task.name,
        "settings": asdict(settings),
        "values": outcome.result.vector.values.size,
        "frame_bytes": len(data),
        "n": outcome.base.n,
        "base": outcome.base.mean,
        "vector": outcome.personalized.mean,
        **asdict(comparison),
        "validation": [row["validation"] for row in validated],
        "validated_at": [row.get("step", 0) for row in validated],
        "best_step": outcome.result.best_step,
        **({} if task.preamble is None else {"preamble": task.preamble}),
        **({} if began is None else {"distilled": began.share}),
        "frame": None if arm.is_bound else base64.urlsafe_b64encode(data).decode(),
        "basis": basis.digest,
        "commit": bench.commit(),
        "versions": bench.environment()["versions"],
        "norm": float(np.linalg.norm(outcome.result.vector.values)),
        "lr": max((row.get("lr", 0.0) for row in rows if row not in trials), default=0.0),
        "trials": trials,
        "seconds": time.monotonic() - start,
    }


def distilled(bundle: Path, task: Task, options: argparse.Namespace) -> Distilled:
    """Return the task's best prompt as a vector, by its answers to 24 training prompts."""
    prompt = best_prompt(options.task)
    examples = tuple((each.text, str(each.answer)) for each in prompt.examples)
    teacher = Behaviour("the best prompt", system=prompt.system, examples=examples)
    shown = {asked for asked, _ in examples}
    trained = task.train[TrainSettings().validation :]
    asked = [text for each in trained if (text := each.text) not in shown][:36]
    return distill(bundle, teacher, asked[:24], asked[24:], workers=options.workers)


def changed(basis: Basis, arm: Arm, bundle: Path, options: argparse.Namespace) -> Basis:
    """Return what an arm trains in the place of the basis that was exported, or that basis itself."""
    if arm.all_entries:
        return basis.with_all_entries()
    if arm.far:
        chosen = [each for each in load_behaviours(split="learn") if not each.near]
        slopes = options.slopes or bundle / "slopes"
        basis = learn(bundle, slopes, behaviours=chosen, workers=options.workers).basis
    if arm.tiles:
        (tiles := bundle / "tiles").mkdir()
        return mixed(basis, arm.kept, export(tiles, Shape(groups=arm.tiles))[1])
    return basis if arm.prior else replace(basis, prior_mean=None, prior_covariance=None)


def mixed(learned: Basis, kept: int, tiled: Basis) -> Basis:
    """Return a basis of the first learned directions and of random tiles, each one a number.

    A tile is scaled to the modules that it would have if there were as many tiles as learned directions, so
    that a unit of each value moves the model about as far.
    """
    p = learned.projections.swapaxes(0, 1)  # [n, M, r, r]
    tiles = np.zeros((tiled.groups, *p.shape[1:]), np.float32)
    scale = math.sqrt(tiled.groups / learned.size)
    tiles[tiled.tying, np.arange(len(tiled.modules))] = tiled.projections[:, 0] * scale
    return learned.with_projections(np.concatenate([p[:kept], tiles]))


def missing(options: argparse.Namespace) -> list[tuple[str, int]]:
    done = {(r["arm"], r["seed"]) for r in bench.read_study(options.study) if matches(r, options)}
    # Seeds outermost: whenever the time runs out, the arms have the same number of them.
    return [(arm, seed) for seed in options.seeds for arm in options.arms if (arm, seed) not in done]


def matches(run: dict[str, Any], options: argparse.Namespace) -> bool:
    asked = options.task, options.steps, options.held_out
    return bool((run["task"], run["settings"]["steps"], run["n"]) == asked)


def run_missing(options: argparse.Namespace, report: bench.Report) -> None:
    """Run what is missing, `--jobs` processes at a time; a run that fails is said and left out."""

    def start(run: tuple[str, int]) -> None:
        name, seed = run
        command = [sys.executable, __file__, "--only", name, "--seeds", str(seed), "--task", options.task]
        command += ["--steps", str(options.steps), "--held-out", str(options.held_out)]
        command += ["--workers", str(options.workers)] if options.workers else []
        command += ["--slopes", str(options.slopes)] if options.slopes else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            report.say(f"FAILED  {name}, seed {seed}: {done.stderr.strip().splitlines()[-1]}")
            return
        found = json.loads(done.stdout.splitlines()[-1])
        bench.keep(options.study, found)
        report.say(
            f"{name}, seed {seed}: {found['base']:.3f} -> {found['vector']:.3f} in {found['seconds']:.0f} s"
        )

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(start, missing(options)))


def summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: the mean gain, and its standard error from the spread between seeds.

    With one seed the standard error is that of the paired difference over prompts: it says nothing of
    what another seed would find.
    """
    gains = [run["difference"] for run in runs]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else runs[0]["standard_error"]
    return {
        "arm": name,
        "values": runs[0]["values"],
        "frame_bytes": runs[0]["frame_bytes"],
        "seeds": len(runs),
        "n": runs[0]["n"],
        "vector": statistics.mean(run["vector"] for run in runs),
        "gain": statistics.mean(gains),
        "standard_error": error,
        "gains": gains,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument("--study", type=Path, metavar="FILE", help="runs, kept and gone on with")
    arguments.add_argument("--task", default="list-lookup", help="(%(default)s)")
    arguments.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    arguments.add_argument("--steps", type=int, default=TrainSettings().steps, help="a run (%(default)s)")
    arguments.add_argument("--held-out", type=int, default=128, help="prompts measured on (%(default)s)")
    arguments.add_argument("--jobs", type=int, default=1, help="runs at the same time (%(default)s)")
    arguments.add_argument("--workers", type=int, help="threads a run; all cores unless given")
    arguments.add_argument(
        "--slopes", type=Path, metavar="FOLDER", help="keeps what `learn` takes of behaviours"
    )
    arguments.add_argument(
        "--other-commits", action="store_true", help="go on with a study that other commits began"
    )
    arguments.add_argument("--only", help=argparse.SUPPRESS)
    arguments.add_argument(
        "--summary", action="store_true", help="run nothing: make docs/EVIDENCE.md of the records again"
    )
    options = arguments.parse_args()
    if options.summary:
        evidence.write()
        return
    if options.only:
        print(json.dumps(one_run(options.only, options.seeds[0], options)))
        return
    report = bench.Report("science", options.json)
    with tempfile.TemporaryDirectory() as folder:
        options.study = options.study or Path(folder) / "study.jsonl"
        if not options.other_commits:
            known = (run for run in bench.read_study(options.study) if matches(run, options))
            bench.refuse_other_commits(options.study, [run for run in known if run["arm"] in options.arms])
        run_missing(options, report)
        runs = [run for run in bench.read_study(options.study) if matches(run, options)]
    found = [summary(arm, mine) for arm in options.arms if (mine := [r for r in runs if r["arm"] == arm])]
    rows = [
        [
            f["arm"],
            str(f["values"]),
            str(f["frame_bytes"]),
            f"{f['vector']:.3f}",
            f"{f['gain']:+.3f} +- {f['standard_error']:.3f}",
            " ".join(f"{gain:+.3f}" for gain in f["gains"]),
        ]
        for f in found
    ]
    if found:
        base = runs[0]["base"]
        report.say(f"\n{options.task}, {options.steps} steps, greedy, n = {found[0]['n']}, base {base:.3f}")
        headers = ["arm", "values", "frame bytes", "vector (mean)", "gain over seeds", "gain of each seed"]
        report.say(bench.table(headers, rows))
    report.record |= {"runs": runs, "summary": found}
    report.finish()


if __name__ == "__main__":
    main()
