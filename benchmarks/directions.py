"""What few directions of R hold of what prompts ask for: learned, random and the paper's; forms, modules, n.

The slopes of `learn` are taken for the behaviours that are near no task, and for the held-out families, which
no direction is learned from. A set of directions D closes at most 1/2 g' D (D' F D)^-1 D' g nats a token of a
behaviour (second order, at R = 0). Two halves of its questions give g twice, and the product of one with the
other is free of the noise of few questions, which their squares are not. A share is of what all of R closes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
from _subjects import LEARNED, export
from numpy.typing import NDArray

from tinylora_edge import Basis
from tinylora_edge.exporters import ExportSettings
from tinylora_edge.tasks.behaviours import Behaviour, load_behaviours
from tinylora_edge.train.learned import LearnSettings, Metric, learn
from tinylora_edge.train.learned.directions import learned_directions, tiled_directions
from tinylora_edge.train.learned.distillation import directions_of
from tinylora_edge.tying import tie

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """Slopes of some behaviours, float64 [K, D]: of each half of their questions."""

    one: Matrix
    other: Matrix

    @property
    def whole(self) -> NDArray[np.float32]:
        return ((self.one + self.other) / 2).astype(np.float32)

    def closed(self, directions: Matrix, information: Matrix) -> Matrix:
        """Return what directions close of each behaviour, in nats a token: [K]."""
        gram = directions @ information @ directions.T
        best = np.linalg.solve(gram, directions)
        found: Matrix = 0.5 * ((self.one @ directions.T) * (self.other @ best.T)).sum(1)
        return found


def slopes(bundle: Path, folder: Path, chosen: Sequence[Behaviour]) -> tuple[Side, Matrix, int]:
    """Take the slopes of behaviours, or read what is there; also the scores of each question, and tokens."""
    learn(bundle, folder, behaviours=chosen, settings=LearnSettings(directions=1), report=show)
    halves: tuple[list[Matrix], list[Matrix]] = ([], [])
    scores, tokens = [], 0
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            rows, counts = file["divergence"], file["tokens"]
            flat = rows.reshape(len(rows), -1).astype(np.float64)
            middle = len(rows) // 2
            for half, part in zip(halves, (slice(None, middle), slice(middle, None)), strict=True):
                half.append(flat[part].sum(0) / counts[part].sum())
            scores.append(file["score"].reshape(len(rows), -1).astype(np.float64))
            tokens += int(counts.sum())
    return Side(np.stack(halves[0]), np.stack(halves[1])), np.concatenate(scores), tokens


def show(figures: dict[str, object]) -> None:
    if sys.stderr.isatty():
        print(f"\r{figures['done']}/{figures['of']} {figures['name']!s:30.30}", end="", file=sys.stderr)


def arms(
    basis: Basis, shipped: Matrix, known: Side, metric: Metric
) -> Iterator[tuple[str, int, Callable[[], NDArray[np.float64]]]]:
    """Give sets of directions: name, modules, and a function that returns them, [n, D]."""
    entries, size = basis.rank**2, len(basis.modules) * basis.rank**2
    modules = np.array(basis.modules)

    def dense(n: int, inside: NDArray[np.bool_] | None = None, by: Metric = metric) -> NDArray[np.float64]:
        places = np.arange(size) if inside is None else np.flatnonzero(np.repeat(inside, entries))
        found = np.zeros((n, size))
        own = by if inside is None else by.within(places)
        found[:, places] = learned_directions(known.whole[:, places], own, n).directions
        return found

    def tiled(scheme: str, n: int) -> NDArray[np.float64]:
        tying = np.repeat(tie(basis.modules, scheme, n), entries)
        return tiled_directions(known.whole, metric, tying).directions.astype(np.float64)

    count = len(modules)
    yield (
        "the paper's: tiled, random, 13",
        count,
        lambda: directions_of(basis).reshape(-1, size).astype(np.float64),
    )
    yield "random, dense, 13", count, lambda: np.random.default_rng(0).standard_normal((13, size))
    yield "as shipped, learned from what is near a task, too, 13", count, lambda: shipped
    for n in (1, 6, 13, 26, 52):
        yield f"learned, dense, {n}", count, lambda n=n: dense(n)  # type: ignore[misc]
    for n in (13, 26, 52):
        yield f"learned, one a tile, {n}", count, lambda n=n: tiled("tiled", n)  # type: ignore[misc]
    yield "learned, one a kind and depth, 13", count, lambda: tiled("structured", 13)
    block = np.array([int(name.split(".")[1]) for name in modules])
    kinds = {name.split(".")[2] for name in modules}
    subsets = {kind: np.char.find(modules, f".{kind}.") >= 0 for kind in sorted(kinds)}
    subsets |= {
        "ffn_gate, ffn_up, ffn_down": np.char.find(modules, ".ffn_") >= 0,
        "attention": np.char.find(modules, ".attn_") >= 0,
        "every second block": block % 2 == 0,
        "every third block": block % 3 == 0,
        "the first half": block < (block.max() + 1) / 2,
        "the last half": block >= (block.max() + 1) / 2,
    }
    for name, inside in subsets.items():
        yield f"learned, dense, 13: {name}", int(inside.sum()), lambda i=inside: dense(13, i)  # type: ignore[misc]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument("--folder", type=Path, metavar="DIR", help="slopes, kept and gone on with")
    options = arguments.parse_args()
    report = bench.Report("directions", options.json)
    with tempfile.TemporaryDirectory() as folder:
        place = options.folder or Path(folder)
        bundle, basis = export(Path(folder), ExportSettings())
        (other := Path(folder) / "shipped").mkdir()
        shipped = directions_of(export(other, LEARNED)[1]).reshape(13, -1).astype(np.float64)
        near_none = [one for one in load_behaviours(split="learn") if not one.near]
        held_out = [one for one in load_behaviours(split="held_out") if not one.near]
        known, scores, tokens = slopes(bundle, place / "learn", near_none)
        new, more, others = slopes(bundle, place / "held_out", held_out)
        metric = Metric.of(scores, tokens)  # what a learner of the basis has
        judge = Metric.of(np.concatenate([scores, more]), tokens + others).information
        whole = [side.closed(np.eye(len(judge)), judge) for side in (known, new)]
        rows, record = [], []
        for name, modules, make in arms(basis, shipped, known, metric):
            directions = make()
            found = [
                float(side.closed(directions, judge).sum() / all_of_it.sum())
                for side, all_of_it in zip((known, new), whole, strict=True)
            ]
            record.append({"arm": name, "modules": modules, "learned_from": found[0], "held_out": found[1]})
            rows.append([name, str(modules), f"{found[1]:.3f}", f"{found[0]:.3f}"])
    report.say(f"{len(near_none)} behaviours to learn from, {len(held_out)} held out by family; of all of R:")
    report.say(bench.table(["directions", "modules", "held out", "learned from"], rows))
    report.record |= {"behaviours": len(near_none), "held_out": len(held_out), "arms": record}
    report.finish()


if __name__ == "__main__":
    main()
