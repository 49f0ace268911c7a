"""The slots of a pool: each keeps what was evaluated for one user, in a row of the engine's batch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ...pool import places
from .engine import FEWEST, RowEngine


@dataclass(eq=False)
class Slot(places.Slot):
    """A sequence of a batch, and whose it is.

    Attributes:
        row: of the engine where it lies at the moment.
        prompt: how many of its tokens came as a prompt. The cells of what was generated since are those of
            one token at a time, which differ in their last bits: no later prompt takes them.
    """

    row: int
    prompt: int = 0

    def cut(self, length: int) -> None:
        """Keep the first cells alone."""
        super().cut(length)
        self.prompt = min(self.prompt, length)

    def _most(self, prompt: int) -> int:
        return max(0, min(prompt - FEWEST, self.prompt, len(self.tokens)))


class Slots:
    """The slots of an engine, and the rows that they lie in.

    Args:
        engine: that computes.
        count: slots.
    """

    def __init__(self, engine: RowEngine, count: int) -> None:
        self.engine = engine
        self.all = [Slot(row) for row in range(count)]
        self._at = dict(enumerate(self.all))

    def gather(self, stepping: Collection[Slot], busy: Collection[Slot]) -> int:
        """Move slots that generate to the first rows; return how many rows the next step has.

        Rows between them that idle slots have are exchanged with the last ones. A row whose prompt is being
        evaluated stays where it is, and computes for nothing meanwhile: it will generate soon.

        Args:
            stepping: slots that generate.
            busy: those, and the ones whose prompts are being evaluated.
        """
        order = sorted(stepping, key=lambda slot: slot.row)
        while order:
            hole = next((row for row in range(order[-1].row) if self._at[row] not in busy), None)
            if hole is None:
                return max(FEWEST, order[-1].row + 1)
            self._swap(order[-1], self._at[hole])
            order.sort(key=lambda slot: slot.row)
        return 0

    def length(self, row: int) -> int:
        """Return how many cells of a row are of use."""
        return len(self._at[row].tokens) if row in self._at else 0

    def _swap(self, one: Slot, other: Slot) -> None:
        self.engine.swap(one.row, other.row, (len(one.tokens), len(other.tokens)))
        one.row, other.row = other.row, one.row
        self._at[one.row], self._at[other.row] = one, other
