"""The `tinylora-edge` command: this module loads the application in `app`, or says which package it lacks."""

from __future__ import annotations

import sys

from tinylora_edge.errors import MissingExtraError


def main() -> None:
    """Run the command line and leave the process with its exit code.

    0: done. 1: refused or failed, with one line on stderr. 2: wrong usage. 130: interrupted.
    """
    try:
        from .app import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.exit(f"error: {MissingExtraError('the command line', package, 'cli')}")
    except KeyboardInterrupt:
        sys.exit(130)
    run()
