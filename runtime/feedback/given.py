"""An answer that a user was given by a pool, as far as learning from a click needs it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...vector import MicroVector


@dataclass(frozen=True)
class Given:
    """An answer that a user was given.

    Attributes:
        prompt: token ids.
        tokens: token ids of the answer.
        vector: that answered; None for the base.
        temperature: that it was drawn at; 0 for the likeliest tokens.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    vector: MicroVector | None
    temperature: float = 1.0

    def at(self, size: int) -> NDArray[np.float64]:
        """Return the values of the vector, float64 [n]."""
        vector = self.vector
        return np.zeros(size) if vector is None else vector.values.astype(np.float64).reshape(-1)
