"""Python as on Windows, as far as our modules see it: os.name is nt, and what Windows lacks is absent.

Paths stay those of this machine, since pathlib has an `os` of its own. Microsoft's page says what
`msvcrt.locking` does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import types
from typing import Any

ABSENT = ("fcntl", "grp", "pwd", "readline", "resource", "termios")
"""Modules that there are none of."""

LACKING = (
    *("O_DIRECTORY", "O_NONBLOCK", "fchmod", "fork", "getuid", "killpg", "register_at_fork"),
    *("sched_getaffinity", "sched_setaffinity", "setsid", "statvfs", "uname"),
)
"""Names that `os` has not."""


class Os(types.ModuleType):
    """`os` of Windows."""

    name = "nt"

    def __getattr__(self, name: str) -> Any:
        if name in LACKING:
            raise AttributeError(f"module 'os' has no attribute {name!r}")
        return getattr(os, name)


class Msvcrt(types.ModuleType):
    """`msvcrt`, with locks of this machine."""

    LK_LOCK, LK_NBLCK = 1, 2

    @staticmethod
    def locking(handle: int, mode: int, count: int) -> None:
        """Lock a file; OSError: another handle has the lock, which LK_LOCK asks for ten times."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            deadlock = mode == Msvcrt.LK_LOCK
            raise OSError(errno.EDEADLK if deadlock else errno.EACCES, "Resource deadlock avoided") from None


def pretend() -> None:
    """Make this process one of Windows, before it imports the package."""
    import asyncio  # noqa: F401 - these have an `os` of their own
    import multiprocessing.connection  # noqa: F401

    import gguf  # noqa: F401
    import llama_cpp  # noqa: F401
    import numpy  # noqa: F401
    import typer.testing  # noqa: F401

    sys.modules |= {"os": Os("os"), "msvcrt": Msvcrt("msvcrt")} | dict.fromkeys(ABSENT)  # type: ignore[arg-type]
    for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGPROF", "setitimer", "pthread_sigmask"):
        delattr(signal, name)
