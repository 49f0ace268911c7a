"""The fit of v to a prompted model's answers: blocks of questions, each with slopes, steps and a check.

Slopes are measured on a block of questions at the vector of now. Gauss-Newton steps follow, on all the
questions so far, and each is taken only if it brings the model nearer to the prompted one on questions that
no step is computed from. Then comes the next block; when there are no new questions, the oldest ones are
asked again, at the vector of now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...vector import MicroVector
from .contrast import Contrast
from .differences import Differences
from .gauss_newton import Linear

Array = NDArray[np.float64]

_DAMPING = 0.03
_LESS, _MORE, _MOST = 0.3, 6.0, 30.0  # factors of it after a step that was taken, and not; and its end
_FARTHEST = 1.0  # nats, root mean square, that a step may change log-probabilities
_LITTLE = 0.01  # share of the divergence at the start: a smaller gain ends a block's steps
_PATIENCE = 2  # blocks without any step that was taken

Affords = Callable[[float], bool]
"""Whether so many tokens are left."""


@dataclass
class _Block:
    contrast: Contrast
    student: list[Array]  # at the vector of now
    slopes: NDArray[np.float32]


@dataclass
class Fit:
    """A vector that is being fitted.

    Attributes:
        basis: of the vector.
        deciding: the contrast of the questions that decide.
        report: called with the figures of every step.
        values: float64 [n], the vector of now.
        divergence: mean KL of the deciding questions under it, in nats a token.
        start: the same under the base.
        steps: that were taken.
        blocks: of which slopes were measured.
    """

    basis: Basis
    deciding: Contrast
    report: Callable[[dict[str, Any]], None]
    values: Array = field(init=False)
    divergence: float = field(init=False)
    start: float = field(init=False)
    steps: int = 0
    blocks: int = 0

    def __post_init__(self) -> None:
        self.values = np.zeros(self.basis.size)
        self.start = self.divergence = self._decide(self.values)
        self._differences = Differences(self.basis)
        self._blocks: list[_Block] = []
        self._damping = _DAMPING
        self._idle = 0

    @property
    def done(self) -> bool:
        """Whether nothing more is to be expected."""
        return self._idle >= _PATIENCE

    def vector(self, values: Array | None = None) -> MicroVector:
        """Return values as a vector; None for those of now."""
        chosen = self.values if values is None else values
        return MicroVector(chosen.astype(np.float32).reshape(self.basis.groups, self.basis.u))

    def learn(self, contrast: Contrast, affords: Affords) -> None:
        """Take in a block of questions, and take the steps that follow.

        Args:
            contrast: of a lesson, new or learned from before, whose slopes are then measured anew.
            affords: asked before each step what it costs.
        """
        now = self._ask(contrast, self.values, range(len(contrast.teacher)))
        slopes = self._differences.slopes(
            lambda values, questions: self._ask(contrast, values, questions), self.values, now
        )
        self._blocks = [block for block in self._blocks if block.contrast is not contrast]
        self._blocks.append(_Block(contrast, now, slopes))
        self.blocks += 1
        taken = self._steps(affords)
        self._idle = 0 if taken else self._idle + 1

    def _steps(self, affords: Affords) -> int:
        taken = refused = 0
        linear = self._linear()
        while refused < 2 and self._damping < _MOST and affords(self._cost()):
            step = linear.solve(damping=self._damping, farthest=_FARTHEST)
            found = self._decide(self.values + step)
            gain = self.divergence - found
            figures = {
                "event": "step",
                "step": self.steps + 1,
                "taken": bool(gain > 0),
                "effect": linear.effect(step),
                "damping": self._damping,
            }
            # Where the vector is too large for the model there is no divergence.
            self.report({**figures, **({"divergence": found} if np.isfinite(found) else {"exploded": True})})
            if not gain > 0:
                refused, self._damping = refused + 1, self._damping * _MORE
                continue
            self.values, self.divergence = self.values + step, found
            self.steps, taken = self.steps + 1, taken + 1
            self._damping = max(self._damping * _LESS, 1e-3)
            for block in self._blocks:
                block.student = self._ask(block.contrast, self.values, range(len(block.student)))
            linear = linear.moved(step, self._students(), self._differences.sizes)
            if gain < _LITTLE * self.start:
                break
        self._damping = min(self._damping, 1.0)  # the next block is another start
        rows = np.split(linear.slopes, np.cumsum([len(block.slopes) for block in self._blocks])[:-1])
        for block, slopes in zip(self._blocks, rows, strict=True):
            block.slopes = slopes.astype(np.float32, copy=False)
        return taken

    def _linear(self) -> Linear:
        teacher = np.concatenate([rows for block in self._blocks for rows in block.contrast.teacher])
        slopes = np.concatenate([block.slopes for block in self._blocks])
        return Linear(self.values, teacher, self._students(), slopes, self.basis.prior)

    def _students(self) -> Array:
        return np.concatenate([rows for block in self._blocks for rows in block.student])

    def _cost(self) -> float:
        """Tokens of a step: of its check, and of what follows where it is taken."""
        lessons = [self.deciding.lesson, *(block.contrast.lesson for block in self._blocks)]
        return float(sum(sum(map(len, lesson.bare)) + lesson.tokens for lesson in lessons))

    def _ask(self, contrast: Contrast, values: Array, questions: Sequence[int]) -> list[Array]:
        # Zeros are the base, not a vector: its own path through the engine.
        return contrast.student(self.vector(values) if values.any() else None, questions)

    def _decide(self, values: Array) -> float:
        vector = self.vector(values) if values.any() else None
        return float(self.deciding.divergences(vector).sum() / self.deciding.lesson.tokens)
