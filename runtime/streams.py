"""Streams: generators that an app steps, and that a model can end."""

from __future__ import annotations

from collections.abc import Generator
from inspect import GEN_SUSPENDED, getgeneratorstate
from typing import Any

from ..errors import TinyLoraError


class Stream(Generator[Any, Any, None]):
    """A generator that somebody else may end, and that says so to whoever goes on with it.

    Args:
        steps: the generator.
    """

    def __init__(self, steps: Generator[Any, Any, None]) -> None:
        self._steps = steps
        self._ended = ""

    def end(self, why: str = "") -> None:
        """End a stream that has begun; `why` is the error of a later step, without one it is just over."""
        if getgeneratorstate(self._steps) == GEN_SUSPENDED:
            self._steps.close()
            self._ended = why

    def send(self, value: Any, /) -> Any:
        """Go on; see `generator.send`.

        Raises:
            TinyLoraError: the stream was ended.
        """
        if self._ended:
            raise TinyLoraError(self._ended)
        return self._steps.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an error inside; see `generator.throw`."""
        return self._steps.throw(*error)

    def close(self) -> None:
        """End it, as its owner does."""
        self._steps.close()
