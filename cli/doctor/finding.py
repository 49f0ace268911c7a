"""Findings of the doctor: what was looked at, how it is, and the command that mends it."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

OK, NOTE, FAULT = "ok", "note", "fault"


@dataclass(frozen=True)
class Finding:
    """A thing that was looked at.

    Attributes:
        check: which check found it.
        level: `ok`; `note` where something is missing or slow that may not be needed; `fault` where
            something fails, or lets others in.
        text: what was found, in one line.
        mend: the command that changes it; empty where there is none.
    """

    check: str
    level: str
    text: str
    mend: str = ""


def install(*requirements: str, options: str = "") -> str:
    """Return the command that installs packages for the Python that runs this."""
    words = [python(), "-m", "pip", "install", *options.split(), *requirements]
    return shlex.join(words)


def python() -> str:
    """Return what runs this Python from where the user stands."""
    path, here = Path(sys.executable), Path.cwd()
    if not path.is_relative_to(here):
        return str(path)
    below = path.relative_to(here)
    return str(below) if len(below.parts) > 1 else os.path.join(os.curdir, below)
