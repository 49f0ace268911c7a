"""The name of this program as its user types it: by itself, or with its path where PATH lacks it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

NAME = "tinylora-edge"


def typed() -> str:
    """Return what runs this program again from where its user stands.

    It is the name, where PATH leads to this program. Otherwise it is the path that was typed, relative to
    the present directory where it lies below that: `.venv/bin/tinylora-edge`.
    """
    path = Path(sys.argv[0])
    if path.stem != NAME or not path.is_file():  # a test, or an app that calls the commands
        return NAME
    found = shutil.which(NAME)
    if found is not None and os.path.samefile(found, path):
        return NAME
    absolute, here = path.absolute(), Path.cwd()
    if not absolute.is_relative_to(here):
        return str(absolute)
    below = absolute.relative_to(here)
    return str(below) if len(below.parts) > 1 else os.path.join(os.curdir, below)
