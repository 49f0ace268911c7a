"""The installation: Python, this package, and what each extra lacks."""

from __future__ import annotations

import importlib.metadata as metadata
import platform
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ...system import __version__
from .. import console
from .finding import FAULT, NOTE, OK, Finding, install

PYTHON, EXTRA = "python", "extra"

_DISTRIBUTION = "tinylora-edge"
_OURS = ("all", "bench", "dev", "fuzz")
"""Extras that are others together, or for who changes this package."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?\s*([^;]*)(?:;\s*(.*))?\Z")


def check_python() -> Iterator[Finding]:
    """Yield what runs this, and whether its user can call it."""
    where = "an environment of its own" if sys.prefix != sys.base_prefix else "the system's environment"
    text = (
        f"Python {platform.python_version()} ({platform.machine()}), {where}; {_DISTRIBUTION} {__version__}"
    )
    if sys.maxsize < 1 << 32:
        yield Finding(PYTHON, FAULT, f"{text}: it has 32 bits, and models are mapped with 64")
    else:
        yield Finding(PYTHON, OK, text)
    scripts = sysconfig.get_path("scripts")
    if console.typed() != console.NAME or shutil.which(console.NAME) is None:
        text = f"{console.NAME} is not on the PATH of this shell: it lies in {scripts}"
        yield Finding(PYTHON, NOTE, text, f"export PATH={shlex.quote(scripts)}:$PATH")


def check_extras() -> Iterator[Finding]:
    """Yield what each extra lacks, and what is older than this package can do with."""
    try:
        lines = metadata.requires(_DISTRIBUTION) or []
        extras = metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        text = f"{_DISTRIBUTION} runs from {Path(__file__).parents[2]}, and is not installed"
        yield Finding(EXTRA, FAULT, text, install("-e", "."))
        return
    old: dict[str, Finding] = {}
    for extra in (name for name in extras if name not in _OURS):
        missing = []
        for name, least in sorted(needed(lines, extra).items()):
            try:
                found = metadata.version(name)
            except metadata.PackageNotFoundError:
                missing.append(name)
                continue
            if _numbers(found) < _numbers(least):
                text = f"{name} is {found}, and {least} or later is needed"
                old[name] = Finding(EXTRA, FAULT, text, install(f"{name}>={least}", options="--upgrade"))
        if missing:
            text = f"{extra} lacks {', '.join(missing)}"
            yield Finding(EXTRA, NOTE, text, install(f"{_DISTRIBUTION}[{extra}]"))
        else:
            yield Finding(EXTRA, OK, f"{extra} is complete")
    yield from old.values()


def needed(lines: list[str], extra: str) -> dict[str, str]:
    """Return the packages that an extra brings, its own extras resolved, and the least version of each.

    Args:
        lines: `Requires-Dist` of the distribution.
        extra: its name.
    """
    found: dict[str, str] = {}
    todo, seen = [extra], {extra}
    while todo:
        one = todo.pop()
        for line in lines:
            match = _REQUIREMENT.match(line)
            if match is None:
                continue
            name, extras, versions, marker = match.groups()
            of = re.findall(r"""extra\s*==\s*['"]([^'"]+)""", marker or "")
            if of and of[0] != one:
                continue
            if name == _DISTRIBUTION:
                more = {word.strip() for word in (extras or "").split(",")} - seen
                todo += more
                seen |= more
            else:
                least = re.search(r">=\s*([0-9.]+)", versions)
                found[name] = least[1] if least else "0"
    return found


def _numbers(text: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))
