"""`tasks`: the tasks that can be trained for by name."""

from __future__ import annotations

from ...shared import console
from ...shared.options import JsonOption


def tasks(as_json: JsonOption = False) -> None:
    """List the built-in tasks.

    \b
    Example:
      tinylora-edge tasks
    """
    from ....tasks import BUILTIN

    if as_json:
        console.print_json(list(BUILTIN))
        return
    for name in BUILTIN:
        console.say(name)
