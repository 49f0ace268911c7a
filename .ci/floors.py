"""Constraints that install the lowest versions that pyproject.toml allows.

    python .ci/floors.py EXTRA,EXTRA > constraints.txt

One line a package, `name==version`: of the dependencies and of each extra, with the extras that these name.
Where two of them ask for the same package, the higher version stands. Needs Python alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LEFT_OUT = {"torch"}
"""Packages whose newest version is taken: old PyTorch brings gigabytes of CUDA along, wherever it runs."""

_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,.-]+)\])?\s*(?:[>=]=\s*(\d+(?:\.\d+)*))?")


def floors(project: dict[str, Any], extras: Iterable[str]) -> dict[str, str]:
    """Return package -> its lowest version.

    Args:
        project: the table of that name in pyproject.toml.
        extras: names in its optional dependencies.
    """
    found: dict[str, str] = {}
    for name, version in _required(project, list(extras)):
        if name not in LEFT_OUT and _numbers(version) > _numbers(found.get(name, "0")):
            found[name] = version
    return found


def _required(project: dict[str, Any], todo: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the packages that have a lowest version, and it."""
    lines, seen = list(project["dependencies"]), set()
    while todo:
        if (extra := todo.pop()) in seen:
            continue
        seen.add(extra)
        lines += project["optional-dependencies"][extra]
        for name, extras, _ in map(_parts, project["optional-dependencies"][extra]):
            if name == project["name"]:
                todo += extras.split(",")
    for name, _, version in map(_parts, lines):
        if version:
            yield name, version


def _parts(line: str) -> tuple[str, str, str]:
    match = _REQUIREMENT.match(line)
    if match is None:
        raise ValueError(f"{line!r} is no requirement that is known here")
    return match[1], match[2] or "", match[3] or ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def main(extras: str) -> None:
    """Print the constraints."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    for name, version in sorted(floors(tomllib.loads(text)["project"], extras.split(",")).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main(*sys.argv[1:])
