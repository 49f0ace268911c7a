"""What few directions of R hold of what prompts ask for: learned, random and the paper's; forms, modules, n.

The slopes of `learn` are taken for the behaviours that are near no task, and for the held-out families, which
no direction is learned from. A set of directions D closes at most 1/2 g' D (D' F D)^-1 D' g nats a token of a
behaviour (second order, at R = 0). Two halves of its questions give g twice, and the product of one with the
other is free of the noise of few questions, which their squares are not. A share is of what all of R closes.

Directions are learned from one half of each behaviour's questions. What they cost, F, is judged by the other
half and by the held-out families: a learner and a judge that share questions share what these call free.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
from _subjects import LEARNED, export
from numpy.typing import NDArray

from tinylora_edge import Basis, Bundle
from tinylora_edge.exporters import ExportSettings
from tinylora_edge.modules import LIGHT, select
from tinylora_edge.tasks.behaviours import Behaviour, load_behaviours
from tinylora_edge.train.learned import LearnSettings, Metric
from tinylora_edge.train.learned.directions import learned_directions, tiled_directions
from tinylora_edge.train.learned.distillation import directions_of
from tinylora_edge.train.learned.learning import take_slopes
from tinylora_edge.tying import tie

Matrix = NDArray[np.float64]


DRAWS = 5
"""Of few behaviours from all of them: a share is the mean over draws."""
USUAL = "learned, dense, 13"


@dataclass(frozen=True)
class Slopes:
    """Slopes of a behaviour, a row a question.

    Attributes:
        divergence: of the KL to the prompted model, summed over tokens: float64 [Q, D].
        score: of the log-probability of tokens that the model drew, summed over tokens: float64 [Q, D].
        tokens: int64 [Q].
    """

    divergence: Matrix
    score: Matrix
    tokens: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> Slopes:
        with np.load(path) as file:
            rows = len(file["tokens"])
            divergence, score = (file[key].reshape(rows, -1) for key in ("divergence", "score"))
            return cls(divergence.astype(np.float64), score.astype(np.float64), file["tokens"])

    def of(self, chosen: Sequence[int] | slice) -> Slopes:
        """Those of some questions."""
        return Slopes(self.divergence[chosen], self.score[chosen], self.tokens[chosen])

    @property
    def halves(self) -> tuple[Slopes, Slopes]:
        middle = len(self.tokens) // 2
        return self.of(slice(None, middle)), self.of(slice(middle, None))

    @property
    def mean(self) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.divergence.sum(0) / self.tokens.sum()
        return found


def metric_of(known: Sequence[Slopes]) -> Metric:
    scores = np.concatenate([each.score for each in known])
    return Metric.of(scores, int(sum(each.tokens.sum() for each in known)))


def whole(known: Sequence[Slopes]) -> NDArray[np.float32]:
    """What directions are learned from, [K, D]: each half of the questions counts alike."""
    rows = [(one.mean + other.mean) / 2 for one, other in (each.halves for each in known)]
    return np.stack(rows).astype(np.float32)


def closed(known: Sequence[Slopes], directions: Matrix, information: Matrix) -> NDArray[np.float64]:
    """What directions close of each behaviour, in nats a token: [K]."""
    one, other = (np.stack([each.halves[i].mean for each in known]) for i in (0, 1))
    best = np.linalg.solve(directions @ information @ directions.T, directions)
    found: NDArray[np.float64] = 0.5 * ((one @ directions.T) * (other @ best.T)).sum(1)
    return found


def slopes(
    bundle: Path, folder: Path, chosen: Sequence[Behaviour], max_tokens: int = LearnSettings().max_tokens
) -> list[Slopes]:
    """Take the slopes of behaviours, or read what is there."""
    settings = LearnSettings(max_tokens=max_tokens)
    paths = take_slopes(Bundle.find(bundle), folder, chosen, settings=settings, report=show)
    return [Slopes.read(path) for path in paths]


def show(figures: dict[str, object]) -> None:
    if sys.stderr.isatty():
        print(f"\r{figures['done']}/{figures['of']} {figures['name']!s:30.30}", end="", file=sys.stderr)


def arms(basis: Basis, shipped: Matrix, known: Sequence[Slopes]) -> Iterator[tuple[str, int, list[Matrix]]]:
    """Give sets of directions: name, modules, and the directions of each draw, [n, D]."""
    entries, size = basis.rank**2, len(basis.modules) * basis.rank**2
    modules, metric = np.array(basis.modules), metric_of(known)

    def dense(n: int, inside: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        places = np.arange(size) if inside is None else np.flatnonzero(np.repeat(inside, entries))
        found = np.zeros((n, size))
        own = metric if inside is None else metric.within(places)
        found[:, places] = learned_directions(whole(known)[:, places], own, n).directions
        return found

    def tiled(scheme: str, n: int) -> NDArray[np.float64]:
        tying = np.repeat(tie(basis.modules, scheme, n), entries)
        return tiled_directions(whole(known), metric, tying).directions.astype(np.float64)

    count = len(modules)
    yield "the paper's: tiled, random, 13", count, [directions_of(basis).reshape(-1, size).astype(np.float64)]
    yield "random, dense, 13", count, [np.random.default_rng(0).standard_normal((13, size))]
    yield "as shipped, learned from what is near a task, too, 13", count, [shipped]
    for n in (1, 6, 13, 26, 52):
        yield f"learned, dense, {n}", count, [dense(n)]
    for n in (13, 26, 52):
        yield f"learned, one a tile, {n}", count, [tiled("tiled", n)]
    yield "learned, one a kind and depth, 13", count, [tiled("structured", 13)]
    block = np.array([int(name.split(".")[1]) for name in modules])
    kinds = {name.split(".")[2] for name in modules}
    subsets = {kind: np.char.find(modules, f".{kind}.") >= 0 for kind in sorted(kinds)}
    subsets |= {
        "ffn_gate, ffn_up, ffn_down": np.char.find(modules, ".ffn_") >= 0,
        "attention": np.char.find(modules, ".attn_") >= 0,
        "attention and ffn_down": (np.char.find(modules, ".ffn_gate.") < 0)
        & (np.char.find(modules, ".ffn_up.") < 0),
        LIGHT: np.isin(modules, select(basis.modules, [LIGHT])),
        "every second block": block % 2 == 0,
        "every third block": block % 3 == 0,
        "the first half": block < (block.max() + 1) / 2,
        "the last half": block >= (block.max() + 1) / 2,
    }
    for name, inside in subsets.items():
        yield f"learned, dense, 13: {name}", int(inside.sum()), [dense(13, inside)]


def learned(chosen: Sequence[Slopes]) -> Matrix:
    """Return 13 directions that are learned from slopes."""
    return learned_directions(whole(chosen), metric_of(chosen), 13).directions.astype(np.float64)


def sizes(known: Sequence[Slopes]) -> Iterator[tuple[str, list[Matrix]]]:
    """Give 13 directions of fewer behaviours, and of fewer questions: a name, and those of each draw."""
    for few in (20, 40, 80):
        dice = np.random.default_rng(few)
        draws = [[known[i] for i in dice.permutation(len(known))[:few]] for _ in range(DRAWS)]
        yield f"learned from {few} behaviours", [learned(draw) for draw in draws]
    some = [each.of([0, len(each.tokens) // 2]) for each in known]
    yield "learned from 2 questions a behaviour", [learned(some)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument("--folder", type=Path, metavar="DIR", help="slopes, kept and gone on with")
    arguments.add_argument(
        "--tokens", type=int, nargs="*", default=[7, 28], metavar="N", help="an answer, beside the usual 14"
    )
    options = arguments.parse_args()
    report = bench.Report("directions", options.json)
    with tempfile.TemporaryDirectory() as folder:
        place = options.folder or Path(folder)
        bundle, basis = export(Path(folder), ExportSettings())
        (other := Path(folder) / "shipped").mkdir()
        shipped = directions_of(export(other, LEARNED)[1]).reshape(13, -1).astype(np.float64)
        near_none = [one for one in load_behaviours(split="learn") if not one.near]
        held_out = [one for one in load_behaviours(split="held_out") if not one.near]
        known = slopes(bundle, place / "learn", near_none)
        new = slopes(bundle, place / "held_out", held_out)
        first, rest = ([each.halves[i] for each in known] for i in (0, 1))
        cost = metric_of([*rest, *new]).information
        sides = (new, rest)
        all_of_it = [closed(side, np.eye(len(cost)), cost).sum() for side in sides]
        chosen = list(arms(basis, shipped, first))
        chosen += [(name, len(basis.modules), draws) for name, draws in sizes(first)]
        for count in options.tokens:
            some = [each.halves[0] for each in slopes(bundle, place / f"learn-{count}", near_none, count)]
            chosen.append((f"learned from answers of {count} tokens", len(basis.modules), [learned(some)]))
        found = {
            name: [np.mean([closed(side, each, cost) for each in draws], axis=0) for side in sides]
            for name, _, draws in chosen
        }
        usual = found[USUAL][0]
        rows, record = [], []
        for name, modules, draws in chosen:
            mine, other_questions = found[name]
            error = float(np.std(mine - usual, ddof=1) * len(usual) ** 0.5 / usual.sum())
            row = {
                "held_out": float(mine.sum() / all_of_it[0]),
                "other_questions": float(other_questions.sum() / all_of_it[1]),
                "kept": float(mine.sum() / usual.sum()),
                "standard_error": error,
            }
            record.append({"arm": name, "modules": modules, "draws": len(draws)} | row)
            kept = f"{row['kept']:.2f} +- {error:.2f}"
            rows.append([name, str(modules), f"{row['held_out']:.3f}", kept, f"{row['other_questions']:.3f}"])
    report.say(f"{len(near_none)} behaviours to learn from, {len(held_out)} held out by family; of all of R:")
    headers = ["directions", "modules", "unknown families", "of 13 learned", "known, other questions"]
    report.say(bench.table(headers, rows))
    report.record |= {"behaviours": len(near_none), "held_out": len(held_out), "arms": record}
    report.finish()


if __name__ == "__main__":
    main()
