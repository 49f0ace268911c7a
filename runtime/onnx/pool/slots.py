"""The slots of a pool: each keeps what was evaluated for one user, in a row of the engine's batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ....vector import MicroVector
from .engine import FEWEST, RowEngine


@dataclass(eq=False)
class Slot:
    """A sequence, and whose it is.

    Attributes:
        row: of the engine where it lies at the moment.
        user: whose last request it has.
        vector: that its cells were computed with.
        tokens: whose cells it holds.
        prompt: how many of them came as a prompt. The cells of what was generated since are those of one
            token at a time, which differ in their last bits: no later prompt takes them.
        used: when it was used last, in requests.
    """

    row: int
    user: str = ""
    vector: MicroVector | None = None
    tokens: list[int] = field(default_factory=list)
    prompt: int = 0
    used: int = 0

    def shared(self, user: str, vector: MicroVector | None, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt it has already: nobody finds what another user asked."""
        if user != self.user or vector != self.vector:
            return 0
        limit = max(0, min(len(prompt) - FEWEST, self.prompt, len(self.tokens)))
        return next((i for i in range(limit) if prompt[i] != self.tokens[i]), limit)

    def cut(self, length: int) -> None:
        """Keep the first cells alone."""
        del self.tokens[length:]
        self.prompt = min(self.prompt, length)


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
