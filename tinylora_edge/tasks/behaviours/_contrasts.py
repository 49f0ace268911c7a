"""Files of contrasts: one behaviour a line, and the side that it is on.

    {"side": "+", "system": "Write a long answer of several paragraphs."}
    {"side": "-", "system": "Answer in one short sentence."}

A line is one of a file of behaviours (see `_files`) with a `side`. It may go without a `name`: it is then
called after its axis, its side and its number. Lines whose split is "held_out" are not learned from. A file
that is shipped is called after its axis.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import TrainError, did_you_mean
from .._jsonl import kind_of, read_objects
from ._files import claim_name, read_behaviour
from .behaviour import Behaviour
from .contrast import SIDES, Contrast, Side

_FOLDER = Path(__file__).with_name("axes")


def shipped_axes() -> tuple[str, ...]:
    """Return the names of the axes that are shipped, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.jsonl")))


def load_contrast(name: str, path: str | os.PathLike[str] | None = None) -> Contrast:
    """Return the contrast of a named axis.

    Args:
        name: of the axis.
        path: a JSONL file; None: the file that is shipped under this name.

    Raises:
        TrainError: no such axis is shipped, the file cannot be read, a line is malformed, a name occurs
            twice, or the sides are no contrast.
    """
    if path is None:
        path = _shipped(name)
    sides: dict[Side, list[Behaviour]] = {side: [] for side in SIDES}
    places: dict[str, str] = {}
    for place, row in read_objects(Path(path), "the contrast"):
        side = _side(place, row.pop("side", None))
        row.setdefault("name", f"{name} {side}{len(sides[side]) + 1}")
        behaviour = read_behaviour(place, row)
        claim_name(places, behaviour, place)
        if behaviour.split == "learn":
            sides[side].append(behaviour)
    try:
        return Contrast(name, tuple(sides["+"]), tuple(sides["-"]))
    except TrainError as error:
        raise TrainError(f"{path}: {error}") from None


def _shipped(name: str) -> Path:
    names = shipped_axes()
    if name not in names:
        known = f"those are {', '.join(names)}" if names else "none is"
        advice = did_you_mean(name, names, f"{known}. Pass {name}=FILE.jsonl for your own")
        raise TrainError(f"no axis {name!r} is shipped: {advice}")
    return _FOLDER / f"{name}.jsonl"


def _side(place: str, value: object) -> Side:
    for side in SIDES:
        if value == side:
            return side
    if value is None:
        raise TrainError(f'{place}: there is no "side", expected "+" or "-"')
    raise TrainError(f'{place}: "side" is {kind_of(value)}, expected "+" or "-"')
