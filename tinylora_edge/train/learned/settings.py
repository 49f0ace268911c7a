"""The settings of learning a basis."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import TrainError
from .contrasts import FEWEST

FORMS: tuple[str, ...] = ("dense", "tiled")


@dataclass(frozen=True, kw_only=True)
class LearnSettings:
    """The settings of learning a basis.

    Attributes:
        directions: n, how many numbers a vector has.
        form: `dense` (each direction spans all modules, u = n), or `tiled` (one direction a tile of modules,
            u = 1: a swap is n scales).
        questions: asked of each behaviour.
        max_tokens: of an answer.
        axis_questions: asked of each behaviour of a named axis: an axis is one contrast, and no mean of many.
        axis_tokens: of an answer to those.
        temperature: of the answers.
        seed: of questions, answers, and tokens that are drawn.
    """

    directions: int = 13
    form: str = "dense"
    questions: int = 8
    max_tokens: int = 14
    axis_questions: int = 16
    axis_tokens: int = 32
    temperature: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise TrainError(f"unknown form {self.form!r}: choose one of {', '.join(FORMS)}")
        counts = (self.directions, self.questions, self.max_tokens)
        if min(counts) < 1:
            raise TrainError(f"directions, questions and max_tokens are at least 1, not {counts}")
        if self.axis_questions < FEWEST or self.axis_tokens < 1:
            raise TrainError(
                f"an axis takes at least {FEWEST} questions, which show its noise, and 1 token, not "
                f"{self.axis_questions} and {self.axis_tokens}"
            )

    @property
    def of_axes(self) -> LearnSettings:
        """The settings for the behaviours of named axes."""
        return replace(self, questions=self.axis_questions, max_tokens=self.axis_tokens)
