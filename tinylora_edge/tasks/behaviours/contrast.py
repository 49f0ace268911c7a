"""A contrast: behaviours and their opposites, of which a named axis of a basis is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ...errors import TrainError
from .behaviour import Behaviour, canonical

Side: TypeAlias = Literal["+", "-"]
"""Where a behaviour of a contrast belongs: more of the axis is more of "+"."""

SIDES: tuple[Side, ...] = get_args(Side)


@dataclass(frozen=True)
class Contrast:
    """The two sides of a named axis.

    Attributes:
        name: of the axis, such as "length".
        plus: the behaviours that a positive value stands for, such as long answers.
        minus: their opposites.

    Raises:
        TrainError: a side has no behaviour, or one teacher is on both.
    """

    name: str
    plus: tuple[Behaviour, ...]
    minus: tuple[Behaviour, ...]

    def __post_init__(self) -> None:
        for side, behaviours in zip(SIDES, (self.plus, self.minus), strict=True):
            if not behaviours:
                raise TrainError(
                    f'the axis {self.name!r} is no contrast: no behaviour has the side "{side}". Give at '
                    'least one on each side, "+" and "-"'
                )
        teachers = {_teacher(one): one for one in self.plus}
        for other in self.minus:
            if _teacher(other) in teachers:
                raise TrainError(
                    f"the axis {self.name!r} is no contrast: {teachers[_teacher(other)].name!r} on the side "
                    f'"+" and {other.name!r} on the side "-" are the same teacher. Change one of them'
                )

    @property
    def behaviours(self) -> tuple[Behaviour, ...]:
        """All of both sides, those of "+" first."""
        return (*self.plus, *self.minus)


def _teacher(behaviour: Behaviour) -> tuple[str, tuple[tuple[str, ...], ...]]:
    pairs = (tuple(map(canonical, pair)) for pair in behaviour.examples)
    return canonical(behaviour.system or ""), tuple(pairs)
