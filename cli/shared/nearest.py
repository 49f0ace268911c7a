"""The nearest name to one that was mistyped: of a file in its folder, or of a task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

_ENTRIES = 5000  # of a folder that are looked at
_NEAR = 0.6  # difflib's ratio


def guess(error: BaseException, values: Mapping[str, Any]) -> str | None:
    """Return what was meant by a name that an error is about, or None where nothing is near.

    Args:
        error: what was raised.
        values: the command's parameters. A value counts that names nothing and that the error mentions.
    """
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        said += os.fsdecode(error.filename)
    for name, text in _texts(values):
        known = sorted(_KNOWN[name]()) if name in _KNOWN else []
        if text in known or os.path.lexists(text):
            continue
        missing = _first_missing(Path(text))
        if text not in said and str(missing) not in said:
            continue
        if found := nearest(text, known):
            return found
        beside = _names(missing.parent)
        if found := nearest(missing.name, beside):
            near = missing.with_name(found)
            whole = near / Path(text).relative_to(missing)
            return str(whole if whole.exists() else near)
    return None


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the name that is most like another one, whatever its capitals, or None."""
    by_folded = {each.casefold(): each for each in known if each != name}
    found = get_close_matches(name.casefold(), by_folded, n=1, cutoff=_NEAR)
    return by_folded[found[0]] if found else None


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if (
                isinstance(each, str | Path)
                and not isinstance(each, Enum)
                and (text := os.fspath(each)) not in ("", "-")
                and "\0" not in text
            ):
                yield name, text


def _first_missing(path: Path) -> Path:
    """Return the shortest part of a path that is not there, whose folder is."""
    while not os.path.lexists(path.parent) and path.parent != path:
        path = path.parent
    return path


def _names(folder: Path) -> list[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(each.name for each in islice(entries, _ENTRIES) if not each.name.startswith("."))
    return []


def _tasks() -> Sequence[str]:
    from ...tasks import BUILTIN

    return BUILTIN


_KNOWN: Mapping[str, Callable[[], Sequence[str]]] = {"task": _tasks}
"""Names beside those of files, by the parameter that takes them."""
