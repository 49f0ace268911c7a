"""What prompts become as numbers: the share of the KL that real fits close, on prompts of unknown families.

Each held-out behaviour (its family was learned from by nobody) is fitted as `distill` fits it, in a few bases
and in all of R, and measured on questions that it was not fitted to. Fits are kept in a JSON-lines file as
they end: a second call goes on.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
import torch
from _subjects import LEARNED, SCALES, export
from numpy.typing import NDArray

from tinylora_edge import Basis, runtime
from tinylora_edge.tasks.behaviours import Behaviour, load_behaviours, load_questions
from tinylora_edge.train.learned import Slopes, Student, prepare_lessons
from tinylora_edge.train.learned.distillation import directions_of, spread_by_effect
from tinylora_edge.train.model import load_model

QUESTIONS, CHECKS, TOKENS, STEPS = 10, 10, 14, 6

GRID = {
    "the paper's": (0.5, 1.0, 2.0),
    "learned": (0.5, 1.0, 2.0),
    "all of R": (0.15, 0.3, 0.6),
}
"""How far a prior lets each arm go, in multiples of what `distill` takes (for all of R: per number of it).

The one is taken that closes most of behaviours which are learned from.
"""
SEARCHED_ON = 2


@dataclass(frozen=True)
class Directions:
    """Where an arm fits.

    Attributes:
        of_r: float32 [n, M, r, r]; None for all numbers of R.
        spread: float64 [n, n], of the basis's prior; None where the effect on a lesson decides.
    """

    of_r: NDArray[np.float32] | None
    spread: NDArray[np.float64] | None = None

    def spread_on(self, slopes: Slopes, times: float) -> NDArray[np.float64] | float:
        """Return how far vectors are from 0, for a lesson with these slopes."""
        if self.spread is not None:
            return times * self.spread
        size = times * spread_by_effect(slopes, self.of_r)
        return size if self.of_r is None else size * np.eye(len(self.of_r))


def arms(tiled: Basis, learned: Basis) -> dict[str, Directions]:
    """Return where each arm fits."""
    prior = learned.prior
    if prior is None:
        raise SystemExit("the learned basis has no prior")
    return {
        "the paper's": Directions(directions_of(tiled)),
        "learned": Directions(directions_of(learned), prior.spread),
        "all of R": Directions(None),
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
        self, chosen: list[Behaviour], grid: Mapping[str, tuple[float, ...]]
    ) -> Iterator[tuple[Behaviour, float, dict[tuple[str, float], float]]]:
        """Yield of each behaviour the KL before, and the share that each arm closes with each spread."""
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
            slopes = self._student.slopes(lesson, seed=(self._seed, number))
            for name, arm in self._arms.items():
                for times in grid[name]:
                    spread = arm.spread_on(slopes, times)
                    fit = self._student.fit(lesson, steps=STEPS, spread=spread, directions=arm.of_r)
                    r = fit.values if arm.of_r is None else np.tensordot(fit.values, arm.of_r, 1)
                    closed[name, times] = 1 - self._student.divergence(check, r.astype(np.float32)) / before
            return chosen[number], before, closed

        yield from self._pool.map(work, range(len(chosen)))


def spreads(fits: Fits, study: Path, report: bench.Report) -> dict[str, tuple[float, ...]]:
    """Return the spread of each arm, searched once on behaviours that were learned from."""
    known = [row for row in bench.read_study(study) if "spreads" in row]
    if not known:
        some = [b for b in load_behaviours(split="learn") if b.system and not b.examples]
        found = [closed for _, _, closed in fits.run(random.Random(1).sample(some, SEARCHED_ON), GRID)]
        means = {key: statistics.mean(each[key] for each in found) for key in found[0]}
        best = {name: max(grid, key=lambda times: means[name, times]) for name, grid in GRID.items()}
        tried = [[name, times, share] for (name, times), share in means.items()]
        bench.keep(study, {"spreads": best, "tried": tried, "commit": bench.commit()})
        known = [{"spreads": best}]
        report.say(f"spreads, on {SEARCHED_ON} behaviours that were learned from: {best}; {tried}")
    return {name: (times,) for name, times in known[-1]["spreads"].items()}


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
            for behaviour, before, closed in fits.run(missing, spreads(fits, study, report)):
                row = {
                    "behaviour": behaviour.name,
                    "family": behaviour.family,
                    "seed": seed,
                    "before": before,
                    "closed": {name: share for (name, _), share in closed.items()},
                    "spreads_used": dict(list(closed)),
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
