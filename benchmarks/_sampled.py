"""Slopes of behaviours at the largest rank, and a metric of R that never makes a D x D matrix.

The factors of a smaller rank are the first rows and columns of those of a larger one (of the same singular
value decomposition), so that at R = 0 its slopes are a part of the larger one's: one run serves all ranks,
with the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.tasks.behaviours import Behaviour

Matrix = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Side:
    """Slopes of some behaviours, at all ranks up to R.

    Attributes:
        families: of the behaviours.
        one, other: float32 [K, M, R, R], slopes of the KL, nats a token, of each half of the questions.
        scores: float32 [questions, M, R, R], of the log-probabilities of tokens that were drawn.
        lengths: int32 [questions], tokens that were drawn for each.
    """

    families: tuple[str, ...]
    one: NDArray[np.float32]
    other: NDArray[np.float32]
    scores: NDArray[np.float32]
    lengths: NDArray[np.int32]

    @classmethod
    def read(cls, paths: Sequence[Path], behaviours: Sequence[Behaviour]) -> Self:
        """Read what `take_slopes` left."""
        halves: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
        scores, lengths = [], []
        for path in paths:
            with np.load(path) as file:
                rows, counts = file["divergence"], file["tokens"]
                middle = len(rows) // 2
                for half, part in zip(halves, (slice(None, middle), slice(middle, None)), strict=True):
                    half.append(rows[part].sum(0) / counts[part].sum())
                scores.append(file["score"])
                lengths.append(counts)
        families = tuple(each.family for each in behaviours)
        return cls(
            families,
            np.stack(halves[0]),
            np.stack(halves[1]),
            np.concatenate(scores),
            np.concatenate(lengths),
        )

    def __add__(self, other: Self) -> Self:
        """Return both together."""
        parts = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("one", "other", "scores", "lengths")
        }
        return replace(self, families=self.families + other.families, **parts)

    def of(self, chosen: NDArray[np.bool_]) -> Self:
        """Return the side of some behaviours, which were asked equally many questions."""
        each = len(self.scores) // len(self.families)
        families = tuple(np.array(self.families)[chosen].tolist())
        kept = np.repeat(chosen, each)
        return replace(
            self,
            families=families,
            one=self.one[chosen],
            other=self.other[chosen],
            scores=self.scores[kept],
            lengths=self.lengths[kept],
        )

    @property
    def tokens(self) -> int:
        """Tokens that were drawn."""
        return int(self.lengths.sum())

    def at(self, rank: int) -> tuple[Matrix, Matrix, Matrix]:
        """Return one half, the other and the scores at a rank: float64 [..., M r^2]."""
        one, other, scores = (_part(rows, rank) for rows in (self.one, self.other, self.scores))
        return one, other, scores


def embedded(directions: Matrix, modules: int, rank: int, largest: int) -> Matrix:
    """Return directions of a rank as directions of the largest one: [n, M r^2] -> [n, M R^2]."""
    found = np.zeros((len(directions), modules, largest, largest))
    found[:, :, :rank, :rank] = directions.reshape(len(directions), modules, rank, rank)
    return found.reshape(len(directions), -1)


class Sampled:
    """The Fisher information S' S / T + ridge, of scores S of few questions, by its eigenvectors.

    Args:
        scores: float64 [questions, D], D may be far more than the questions.
        tokens: T.
        ridge: what is added to the diagonal; None for a tenth of the mean diagonal, as `Metric` has it.
    """

    def __init__(self, scores: Matrix, tokens: int, ridge: float | None = None) -> None:
        self.mean_diagonal = float((scores**2).sum()) / tokens / scores.shape[1]
        self.ridge = 0.1 * self.mean_diagonal if ridge is None else ridge
        values, vectors = np.linalg.eigh(scores @ scores.T / tokens)
        kept = values > 1e-10 * values[-1]
        self._values = values[kept]
        self._axes = (scores.T @ vectors[:, kept]) / np.sqrt(tokens * self._values)  # [D, k], orthonormal

    def shrunk(self, ridge: float) -> Self:
        """Return the same with another ridge."""
        other = copy(self)
        other.ridge = ridge
        return other

    def power(self, rows: Matrix, exponent: float) -> Matrix:
        """Return rows F^exponent: [n, D]."""
        base = self.ridge**exponent
        more = (self._values + self.ridge) ** exponent - base
        result: Matrix = base * rows + ((rows @ self._axes) * more) @ self._axes.T
        return result


def closed(one: Matrix, other: Matrix, scores: Matrix, tokens: int, directions: Matrix) -> Matrix:
    """Return what directions close of each behaviour, in nats a token: [K].

    All of it is of questions that had no say in the directions, or it is too much: directions that few
    scores call free are then found free by the same scores. What the directions cost takes no ridge, since
    of few directions few questions say enough.

    Args:
        one, other: float64 [K, D], slopes of each half of the questions: their product is free of noise.
        scores: float64 [questions, D].
        tokens: of the scores.
        directions: float64 [n, D].
    """
    along = scores @ directions.T
    gram = along.T @ along / tokens
    best = np.linalg.solve(gram, directions)
    found: Matrix = 0.5 * ((one @ directions.T) * (other @ best.T)).sum(1)
    return found


def _part(rows: NDArray[np.float32], rank: int) -> Matrix:
    part = rows[:, :, :rank, :rank]
    return part.reshape(len(part), -1).astype(np.float64)
