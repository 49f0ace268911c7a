"""The process that an engine was loaded in: a fork of it has none of the engine's threads, and would hang."""

from __future__ import annotations

import os

from ..errors import TinyLoraError


class Process:
    """The process of the moment, which a loaded engine belongs to.

    `os.fork`, and `multiprocessing` with the start method `fork`, copy the memory of a process and none of
    its threads. What then waits for a thread of the engine, or for a lock that one held, waits for ever.
    """

    _getpid = staticmethod(os.getpid)  # bound early: when the interpreter ends, globals go before models do

    def __init__(self) -> None:
        self._id = self._getpid()

    @property
    def forked(self) -> bool:
        """Whether this is another process, which was forked since."""
        return self._getpid() != self._id

    def check(self) -> None:
        """Refuse to go on in a fork.

        Raises:
            TinyLoraError: this process was forked from the one that loaded the engine.
        """
        if self.forked:
            raise TinyLoraError(
                f"the model was loaded in process {self._id}, and this is {self._getpid()}, which was forked "
                "from it without the engine's threads: load the model after the fork, or start processes "
                "with multiprocessing's `spawn`"
            )
