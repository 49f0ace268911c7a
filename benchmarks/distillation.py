"""What prompts become as numbers: the share of the KL that real fits close, on prompts of unknown families.

Each held-out behaviour (its family was learned from by nobody) is fitted by Adam on the exact KL, in a few
bases and in all of R, and measured on questions that it was not fitted to. Fits are kept in a JSON-lines file
as they end: a second call goes on.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
import torch
from _subjects import LEARNED, SCALES, export
from numpy.typing import NDArray

from tinylora_edge import Basis, runtime
from tinylora_edge.tasks.behaviours import Behaviour, load_behaviours, load_questions
from tinylora_edge.train.learned import Student, prepare_lessons
from tinylora_edge.train.learned.distillation import directions_of, unit_directions
from tinylora_edge.train.model import load_model

QUESTIONS, CHECKS, TOKENS, STEPS = 10, 10, 14, 6

GRID = {
    "the paper's": (0.025, 0.05, 0.1),
    "learned": (0.02, 0.04, 0.08),
    "all of R": (0.0025, 0.005, 0.01),
}
"""Step sizes of each arm. The one is taken that closes most of behaviours which are learned from."""
SEARCHED_ON = 2


def arms(tiled: Basis, learned: Basis) -> dict[str, NDArray[np.float32] | None]:
    """Return the directions of each arm: float32 [n, M, r, r], None for all numbers of R."""
    return {
        "the paper's": unit_directions(directions_of(tiled))[0],
        "learned": directions_of(learned),
        "all of R": None,
    }


class Fits:
    """Fits of behaviours with one seed: lessons drawn by the deployed file, gradients in float32.

    Args:
        bundle: of the deployed file.
        bases: the paper's and the learned one.
        seed: of questions and answers.
        workers: cores.
    """

    def __init__(self, bundle: Path, bases: tuple[Basis, Basis], seed: int, workers: int) -> None:
        self._bundle, self._seed, self._workers = bundle, seed, workers
        self._arms = arms(*bases)
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        model = load_model(bundle / "base.gguf")
        model.set_attn_implementation("eager")
        self._student = self._pool.submit(Student, model, bases[0]).result()

    def run(
        self, chosen: list[Behaviour], rates: dict[str, tuple[float, ...]]
    ) -> Iterator[tuple[Behaviour, float, dict[tuple[str, float], float]]]:
        """Yield of each behaviour the KL before, and the share that each arm closes with each step size."""
        learn, held_out = load_questions(split="learn"), load_questions(split="held_out")
        asked = []
        for each in chosen:
            dice = random.Random(f"{self._seed} {each.name}")
            asked += [(each, dice.sample(learn, QUESTIONS)), (each, dice.sample(held_out, CHECKS))]
        with closing(runtime.load(self._bundle, engine="llama", n_ctx=64, n_threads=self._workers)) as llm:
            lessons = prepare_lessons(
                llm, asked, max_tokens=TOKENS, temperature=0.8, seed=self._seed, n_threads=self._workers
            )

        def work(number: int) -> tuple[Behaviour, float, dict[tuple[str, float], float]]:
            lesson, check = lessons[2 * number], lessons[2 * number + 1]
            before = self._student.divergence(check)
            closed = {}
            for name, directions in self._arms.items():
                steps = STEPS if directions is not None else STEPS - 2  # all of R overfits few questions soon
                for rate in rates[name]:
                    fit = self._student.fit(lesson, steps=steps, lr=rate, directions=directions)
                    r = fit.values if directions is None else np.tensordot(fit.values, directions, 1)
                    left = self._student.divergence(check, r.astype(np.float32))
                    closed[name, rate] = 1 - left / before
            return chosen[number], before, closed

        yield from self._pool.map(work, range(len(chosen)))


def step_sizes(fits: Fits, study: Path, report: bench.Report) -> dict[str, tuple[float, ...]]:
    """Return the step size of each arm, searched once on behaviours that were learned from."""
    known = [row for row in bench.read_study(study) if "step_sizes" in row]
    if not known:
        some = [b for b in load_behaviours(split="learn") if b.system and not b.examples]
        found = [closed for _, _, closed in fits.run(random.Random(1).sample(some, SEARCHED_ON), GRID)]
        means = {key: statistics.mean(each[key] for each in found) for key in found[0]}
        best = {name: max(rates, key=lambda rate: means[name, rate]) for name, rates in GRID.items()}
        tried = [[name, rate, share] for (name, rate), share in means.items()]
        bench.keep(study, {"step_sizes": best, "tried": tried, "commit": bench.commit()})
        known = [{"step_sizes": best}]
        report.say(f"step sizes, on {SEARCHED_ON} behaviours that were learned from: {best}; {tried}")
    return {name: (rate,) for name, rate in known[-1]["step_sizes"].items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument("--study", type=Path, metavar="FILE", help="fits, kept and gone on with")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    arguments.add_argument("--behaviours", type=int, default=10, metavar="N", help="(%(default)s)")
    arguments.add_argument("--workers", type=int, default=2, help="cores (%(default)s)")
    options = arguments.parse_args()
    report = bench.Report("distillation", options.json)
    held = [
        each
        for each in load_behaviours(split="held_out")
        if not each.near and each.system and not each.examples
    ]
    held = random.Random(0).sample(held, options.behaviours)
    with tempfile.TemporaryDirectory() as folder:
        study = options.study or Path(folder) / "study.jsonl"
        rooms = [Path(folder) / name for name in ("tiled", "learned")]
        for room in rooms:
            room.mkdir()
        bundle, tiled = export(rooms[0], SCALES)
        _, learned = export(rooms[1], LEARNED)
        for seed in options.seeds:
            done = {(row.get("behaviour"), row.get("seed")) for row in bench.read_study(study)}
            missing = [each for each in held if (each.name, seed) not in done]
            if not missing:
                continue
            fits = Fits(bundle, (tiled, learned), seed, options.workers)
            rates = step_sizes(fits, study, report)
            for behaviour, before, closed in fits.run(missing, rates):
                row = {
                    "behaviour": behaviour.name,
                    "family": behaviour.family,
                    "seed": seed,
                    "before": before,
                    "closed": {name: share for (name, _), share in closed.items()},
                    "step_sizes_used": dict(list(closed)),
                    "learned_basis": learned.digest,
                    "commit": bench.commit(),
                }
                bench.keep(study, row)
                report.say(f"{behaviour.name}, seed {seed}: " + cells(row["closed"]))
        names, seeds = {each.name for each in held}, set(options.seeds)
        rows = [
            row
            for row in bench.read_study(study)
            if row.get("behaviour") in names and row.get("seed") in seeds
        ]
    table = []
    for name in GRID:
        found = [row["closed"][name] for row in rows]
        error = statistics.stdev(found) / len(found) ** 0.5
        table.append(
            [name, f"{statistics.mean(found):.3f} +- {error:.3f}", f"{statistics.median(found):.3f}"]
        )
    report.say("\n" + bench.table(["directions", "share of the KL closed", "median"], table))
    means = {name: statistics.mean(row["closed"][name] for row in rows) for name in GRID}
    report.target("learned over the paper's", means["learned"] / means["the paper's"], ">=", 3.0)
    report.target("learned over all of R", means["learned"] / means["all of R"], ">=", 0.8)
    report.record |= {"runs": rows, "means": means}
    report.finish()


def cells(closed: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in closed.items())


if __name__ == "__main__":
    main()
