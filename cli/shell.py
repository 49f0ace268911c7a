"""Commands as a shell takes them: quoted, and on several lines where one is too long for the terminal."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from . import program


def command(*words: object) -> str:
    """Return a command of ours as it is typed in a shell, from where the user stands."""
    return shlex.join([program.typed(), *map(str, words)])


def joined(lines: Sequence[str]) -> list[str]:
    """Return commands, those that go on after a backslash in one line."""
    return re.sub(r"\s*\\\n\s*", " ", "\n".join(line.strip() for line in lines)).splitlines()


def broken(command: str, room: int | None) -> list[str]:
    """Return a command on several lines, each but the last with a backslash at its end; quotes stay whole."""
    words = re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", command)
    if room is None or len(command) <= room or " ".join(words) != command:
        return [command]
    units = [words[0]]
    for word in words[1:]:
        if units[-1].startswith("-") and " " not in units[-1] and not word.startswith("-"):
            units[-1] += f" {word}"  # an option, and its value
        else:
            units.append(word)
    lines = [units[0]]
    for word in units[1:]:
        if len(lines[-1]) + 1 + len(word) + 2 > room:
            lines[-1] += " \\"
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return lines
