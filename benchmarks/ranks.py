"""What 13 directions hold where the factors have rank 2, 4 or 8, and where they are fitted in other ways.

`directions.py` has one rank and one construction. Here all ranks and constructions are measured on one scale:
nats a token that are closed to second order, and the share of what all of R at the lowest rank closes. What
directions gain and what they cost is judged by questions that had no say in them, since at rank 8 R has ten
times as many numbers as there are questions. Held out are the families that nothing is learned from. "Folds"
has all behaviours, and learns without a fifth of the families at a time, which judge.

Where the KL is taken to second order, and one metric counts for all behaviours, a joint fit of directions and
coordinates has a solution: for any weights of the behaviours the best coordinates are projections, and the
best directions the first singular vectors. So a joint fit can differ in its weights alone, which it may
choose from how well each behaviour is fitted (alternately, until nothing changes), and in how it treats
noise.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
from _sampled import Matrix, Sampled, Side, closed, embedded
from _subjects import SCALES, export
from numpy.typing import NDArray

from tinylora_edge import Bundle
from tinylora_edge.tasks.behaviours import Behaviour, load_behaviours
from tinylora_edge.train.learned import LearnSettings, take_slopes

RANKS = (2, 4, 8)
COUNT = 13
FOLDS = 5
STEPS = 50  # of an alternating fit, which changes nothing any more after some 20

Construction = Callable[[Matrix, Matrix, NDArray[np.str_]], Matrix]
"""Steps of each half of the questions in whitened coordinates, [K, D], and families -> axes [n, D]."""


def shortened(steps: Matrix, weak: float = 1.0) -> Matrix:
    """Return the factors by which `learn` shortens steps: [K, 1]."""
    found: Matrix = 1 / np.sqrt((steps**2).sum(1, keepdims=True) + weak)
    return found


def first(rows: Matrix, count: int = COUNT) -> Matrix:
    """Return the first right singular vectors."""
    found: Matrix = np.linalg.svd(rows, full_matrices=False)[2][:count]
    return found


def as_it_is(one: Matrix, other: Matrix, families: NDArray[np.str_]) -> Matrix:
    steps = (one + other) / 2
    return first(steps * shortened(steps))


def at_random(one: Matrix, other: Matrix, families: NDArray[np.str_]) -> Matrix:
    """Return the same random directions in each fold, which are learned from nothing but F."""
    found: Matrix = np.random.default_rng(0).standard_normal((COUNT, one.shape[1]))
    return found


def shortened_at(weak: float) -> Construction:
    def fit(one: Matrix, other: Matrix, families: NDArray[np.str_]) -> Matrix:
        steps = (one + other) / 2
        return first(steps * shortened(steps, weak))

    return fit


def not_shortened(one: Matrix, other: Matrix, families: NDArray[np.str_]) -> Matrix:
    return first(one + other)


def families_alike(one: Matrix, other: Matrix, families: NDArray[np.str_]) -> Matrix:
    """Each family counts alike, not each behaviour."""
    steps = (one + other) / 2
    sizes = np.array([(families == family).sum() for family in families])
    return first(steps * shortened(steps) / np.sqrt(sizes)[:, None])


def by_signal(one: Matrix, other: Matrix, families: NDArray[np.str_]) -> Matrix:
    """Each behaviour counts by the share of its step that the other half of its questions confirms."""
    steps = (one + other) / 2
    signal = np.clip((one * other).sum(1), 0, None) / np.maximum((steps**2).sum(1), 1e-30)
    return first(steps * shortened(steps) * np.sqrt(np.minimum(signal, 1))[:, None])


def noise_free(one: Matrix, other: Matrix, families: NDArray[np.str_]) -> Matrix:
    """The directions that close the most as the judge counts it: one half times the other."""
    weights = shortened((one + other) / 2)
    left, right = one * weights, other * weights
    # eigenvectors of left' right + right' left lie in the span of the rows
    span = np.linalg.qr(np.vstack([left, right]).T)[0]
    cross = (left @ span).T @ (right @ span)
    values, vectors = np.linalg.eigh(cross + cross.T)
    found: Matrix = (span @ vectors[:, np.argsort(-values)[:COUNT]]).T
    return found


def alternating(saturates: bool) -> Construction:
    """A joint fit: weights from how well each behaviour is fitted, directions from the weights, and again.

    Where it saturates, the sum of log(1 + |what is held|^2) is raised: what is held of a behaviour already
    counts less, so that others get a direction. Else the sum of log(1 + |what is left|^2) falls: behaviours
    that no direction fits count less.
    """

    def fit(one: Matrix, other: Matrix, families: NDArray[np.str_]) -> Matrix:
        steps = (one + other) / 2
        axes = first(steps * shortened(steps))
        for _ in range(STEPS):
            held = ((steps @ axes.T) ** 2).sum(1)
            against = held if saturates else (steps**2).sum(1) - held
            axes = first(steps / np.sqrt(1 + against)[:, None])
        return axes

    return fit


CONSTRUCTIONS: dict[str, Construction] = {
    "as it is": as_it_is,
    "random, in units of effect": at_random,
    "shortened at a length of .5": shortened_at(0.25),
    "shortened at a length of 2": shortened_at(4.0),
    "not shortened": not_shortened,
    "families alike": families_alike,
    "weighted by signal": by_signal,
    "joint: the noise-free square": noise_free,
    "joint, alternating: what is held saturates": alternating(saturates=True),
    "joint, alternating: what is left saturates": alternating(saturates=False),
}
RIDGES = (0.01, 0.03, 0.3, 1.0)  # times the mean diagonal; `learn` has 0.1


class Study:
    """Directions of each rank, and what they close of behaviours that had no say in them.

    Args:
        known, new: the behaviours to learn from, and those that are held out by family.
        largest: the rank of the slopes.
    """

    def __init__(self, known: Side, new: Side, largest: int) -> None:
        self._known, self._new, self._all, self._largest = known, new, known + new, largest
        self._modules = known.one.shape[1]
        names = sorted(set(self._all.families))
        order = np.random.default_rng(0).permutation(len(names))
        fold = {name: int(place) % FOLDS for name, place in zip(names, order, strict=True)}
        self._fold = np.array([fold[family] for family in self._all.families])
        self._metrics: dict[tuple[int, int | None], Sampled] = {}

    def judged(self, rank: int, construct: Construction, shrinkage: float = 0.1) -> dict[str, Matrix]:
        """Return the nats a token that are closed of each behaviour: held out, and in folds."""
        found = {"folds": np.zeros(len(self._fold))}
        if len(self._known.families) >= COUNT:
            whole = self._directions(rank, construct, shrinkage, None)
            found["held_out"] = closed(*self._new.at(self._largest), self._new.tokens, whole)
        for number in range(FOLDS):
            out = self._fold == number
            side = self._all.of(out)
            part = self._directions(rank, construct, shrinkage, number)
            found["folds"][out] = closed(*side.at(self._largest), side.tokens, part)
        return found

    def all_of(self, rank: int) -> dict[str, float]:
        """Return what all of R at a rank closes, with the ridge of `learn`: nats a token, mean."""
        metric = Sampled(self._all.at(rank)[2], self._all.tokens)
        found = {}
        for name, side in (("folds", self._all), ("held_out", self._new)):
            one, other, _ = side.at(rank)
            found[name] = float(0.5 * (one * metric.power(other, -1.0)).sum(1).mean())
        return found

    def _directions(
        self, rank: int, construct: Construction, shrinkage: float, left_out: int | None
    ) -> Matrix:
        """Return directions that are learned without a fold, or from the known side: [n, D].

        They are as those of the largest rank.
        """
        side = self._known if left_out is None else self._all.of(self._fold != left_out)
        one, other, scores = side.at(rank)
        if (rank, left_out) not in self._metrics:
            self._metrics[rank, left_out] = Sampled(scores, side.tokens)
        metric = self._metrics[rank, left_out]
        metric = metric.shrunk(shrinkage * metric.mean_diagonal)
        steps = (-metric.power(half, -0.5) for half in (one, other))
        axes = construct(*steps, np.array(side.families))
        return embedded(metric.power(axes, -0.5), self._modules, rank, self._largest)


def compare(
    own: dict[str, Matrix], today: dict[str, Matrix], scale: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Return nats and shares of each side, and how far the share is from today's, paired by behaviour."""
    found = {}
    for side, values in own.items():
        apart = (values - today[side]) / scale[side]
        found[side] = {
            "nats": float(values.mean()),
            "share": float(values.mean() / scale[side]),
            "more": float(apart.mean()),
            "standard_error": float(apart.std(ddof=1) / np.sqrt(len(apart))),
        }
    return found


def chosen(split: str, most: int | None) -> list[Behaviour]:
    """Return behaviours that are near no task, family by family in turn, so that any number has them all."""
    families: dict[str, list[Behaviour]] = {}
    for each in load_behaviours(split=split):  # type: ignore[arg-type]
        if not each.near:
            families.setdefault(each.family, []).append(each)
    rounds = max(map(len, families.values()))
    order = [family[i] for i in range(rounds) for _, family in sorted(families.items()) if i < len(family)]
    return order[:most]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument("--folder", type=Path, metavar="DIR", help="slopes, kept and gone on with")
    arguments.add_argument("--behaviours", type=int, metavar="N", help="to learn from (all 163)")
    arguments.add_argument("--held-out", type=int, metavar="N", help="held out by family (all 23)")
    arguments.add_argument("--ranks", type=int, nargs="+", default=list(RANKS), help="(2 4 8)")
    options = arguments.parse_args()
    report = bench.Report("ranks", options.json)
    ranks = sorted(options.ranks)
    low, high = ranks[0], ranks[-1]
    with tempfile.TemporaryDirectory() as folder:
        place = options.folder or Path(folder)
        bundle, basis = export(Path(folder), replace(SCALES, rank=high))
        sides = []
        for split, most in (("learn", options.behaviours), ("held_out", options.held_out)):
            behaviours = chosen(split, most)
            found = Bundle.find(bundle)
            paths = take_slopes(found, place / split, behaviours, settings=LearnSettings(directions=1))
            sides.append(Side.read(paths, behaviours))
    study = Study(*sides, high)
    scale = study.all_of(low)
    today = study.judged(low, as_it_is)
    tried = [(name, construct, 0.1) for name, construct in CONSTRUCTIONS.items()]
    tried += [(f"as it is, F shrunk by {shrinkage:g}", as_it_is, shrinkage) for shrinkage in RIDGES]
    arms: list[dict[str, Any]] = []
    rows = []
    for name, construct, shrinkage in tried:
        for rank in ranks:
            figures = compare(study.judged(rank, construct, shrinkage), today, scale)
            arms.append({"arm": name, "rank": rank, "modules": len(basis.modules), **figures})
            cells = []
            for one in figures.values():
                cells += [f"{one['nats']:.4f}", f"{one['share']:.3f}"]
                cells.append(f"{one['more']:+.3f} +- {one['standard_error']:.3f}")
            rows.append([name, str(rank), *cells])
    counts = [len(side.families) for side in sides]
    report.say(
        f"{counts[0]} behaviours to learn from, {counts[1]} held out by family; shares are of what all of R "
        f"at rank {low} closes ({scale['held_out']:.4f} and {scale['folds']:.4f} nats), and more is than the "
        "first row"
    )
    headers = ["13 directions", "rank", "folds, nats", "share", "more"]
    headers += ["held out, nats", "share", "more"] if counts[0] >= COUNT else []
    report.say(bench.table(headers, rows))
    report.record |= {"all_of_lowest_rank": scale}
    report.record |= {"behaviours": counts[0], "held_out": counts[1], "arms": arms}
    report.finish()


if __name__ == "__main__":
    main()
