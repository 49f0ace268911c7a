"""A lesson: questions with the answers that a prompted model gave, with the prompt and without."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Lesson:
    """The questions of one behaviour as token ids, with the answers that the prompted model gave.

    Attributes:
        name: of the behaviour.
        told: int32 [n], a prompt with the teacher, for each question.
        bare: int32 [n], the same without.
        answers: int32 [n], sampled from the prompted model, with the token that ended it if there was one.
    """

    name: str
    told: list[Tokens]
    bare: list[Tokens]
    answers: list[Tokens]

    @property
    def tokens(self) -> int:
        """Number of tokens that are learned from."""
        return sum(map(len, self.answers))
