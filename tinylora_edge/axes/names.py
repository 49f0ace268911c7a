"""The names of a basis's axes: which they may be, and where a named axis is."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BasisError, did_you_mean

MAX_NAME = 64
"""Characters of the longest name."""


def check_names(names: Sequence[str], size: int) -> None:
    """Check the names of the axes of a basis.

    Args:
        names: one a value, in the order of the values; none at all where the axes have no names.
        size: n, the number of values.

    Raises:
        BasisError: too few or too many, a name twice, or one that could not be shown or typed.
    """
    if names and len(names) != size:
        raise BasisError(f"{len(names)} axes have names, but the vector has {size} values: name all or none")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
            raise BasisError(
                f"axis {number} is called {name!r:.80}: a name is a string of 1 to {MAX_NAME} characters"
            )
        if not name.isprintable() or name != name.strip():
            raise BasisError(
                f"axis {number} is called {name!r}: a name has printable characters alone, and no white "
                "space at its ends"
            )
        first = names.index(name)
        if first != number:
            raise BasisError(f"axes {first} and {number} are both called {name!r}: every name is another")


def position_of(names: Sequence[str], name: str) -> int:
    """Return the position of a named axis among the values.

    Raises:
        BasisError: the axes have no names, or none has this one.
    """
    if not names:
        raise BasisError(f"there is no axis {name!r}: the axes of this basis have no names")
    if name in names:
        return list(names).index(name)
    listed = f"the names are {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
    raise BasisError(f"there is no axis {name!r}: {did_you_mean(name, names, listed)}")
