"""What runs in a row of an engine: a sequence that is generated, or completions that are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..vector import AdmittedVector
from .turns import Who

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
"""Why an answer ended: by itself or at a stop text, at its longest, or by itself behind calls."""

Finished: TypeAlias = Callable[[Any, BaseException | None], None]
"""What is called once, from a loop's thread, at the end: with the work, and None or the error that it failed
with. It raises nothing."""

Draw: TypeAlias = Callable[[NDArray[np.float32]], int | None]
"""Logits [vocabulary] -> the next token, or None where none may follow. VectorError: they are not finite."""

NOBODY = Who("", "")


class Work(ABC):
    """Tokens that a row evaluates, and what becomes of the logits behind them.

    Attributes:
        tokens: of the prompt, and those that followed so far.
        prompt: how many of them are the prompt's.
        vector: under which they are evaluated; None for the base.
        digest: of its R; empty for the base. It is taken here, since loops compare it under their lock.
        who: takes turns with others. What was evaluated for a tenant is found by the same one alone; nothing
            is kept for nobody, "".
        cached: tokens of the prompt that were not evaluated again; None before it begins.
        cancelled: nobody wants the rest. Setting it is enough, in the garbage collector too.
        over: nothing more is wanted.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        finished: Finished,
        vector: AdmittedVector | None = None,
        who: Who = NOBODY,
    ) -> None:
        self.tokens, self.prompt, self.vector = list(tokens), len(tokens), vector
        self.digest = b"" if vector is None else vector.digest
        self.who, self._finished = who, finished
        self.cached: int | None = None
        self.cancelled = self.over = False

    @property
    @abstractmethod
    def first(self) -> int:
        """The number of the first token whose logits are still wanted."""

    @abstractmethod
    def take(self, logits: NDArray[np.float32]) -> None:
        """Take the logits [n, vocabulary] behind the next n tokens that are wanted.

        Raises:
            VectorError: they are not finite.
        """

    def finish(self, error: BaseException | None) -> None:
        """Report the end, once the row is free for others: None, or the error that it failed with."""
        if not self.cancelled:
            self._finished(self, error)


class Generating(Work):
    """A sequence that is generated.

    Args:
        prompt: token ids.
        most: tokens of prompt and answer at most.
        draw: the next token of logits.
        ends: whether a token ends the answer.
        heard: called with each token of the answer and its logits; True where the answer ends behind it.
        finished: see `Finished`.
        vector, who: see `Work`.

    Attributes:
        reason: why it ended, once it has.
        by: the token that it ended with, which is no part of the answer; () where there was none.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        most: int,
        draw: Draw,
        ends: Callable[[int], bool],
        finished: Finished,
        heard: Callable[[int, NDArray[np.float32]], bool] = lambda token, logits: False,
        vector: AdmittedVector | None = None,
        who: Who = NOBODY,
    ) -> None:
        super().__init__(prompt, finished=finished, vector=vector, who=who)
        self.reason: FinishReason = "length"
        self.by: tuple[int, ...] = ()
        self._most, self._draw, self._ends, self._heard = most, draw, ends, heard

    @property
    def first(self) -> int:
        """See `Work`: the last one."""
        return len(self.tokens) - 1

    @property
    def answer(self) -> list[int]:
        """The tokens behind the prompt, so far."""
        return self.tokens[self.prompt :]

    def take(self, logits: NDArray[np.float32]) -> None:
        """See `Work`."""
        token = self._draw(logits[0])
        if token is None or self._ends(token):
            self.reason, self.by, self.over = "stop", () if token is None else (token,), True
            return
        self.tokens.append(token)
        if self._heard(token, logits[0]):
            self.reason, self.over = "stop", True
        self.over = self.over or len(self.tokens) >= self._most


class Scoring(Work):
    """A completion whose tokens are looked up in the logits before them; it is evaluated, nothing is drawn.

    Args:
        prompt, completion: token ids, at least one each.
        read: logits [n, vocabulary], and the number of the completion's token that the first row belongs
            to -> what to keep of each row.
        finished: see `Finished`.
        vector, who: see `Work`.

    Attributes:
        found: what was kept, an item a token of the completion.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        completion: Sequence[int],
        read: Callable[[NDArray[np.float32], int], Sequence[Any]],
        *,
        finished: Finished,
        vector: AdmittedVector | None = None,
        who: Who = NOBODY,
    ) -> None:
        super().__init__([*prompt, *completion[:-1]], finished=finished, vector=vector, who=who)
        self.found: list[Any] = []
        self._before, self._count, self._read = len(prompt), len(completion), read

    @property
    def first(self) -> int:
        """See `Work`: the one before the next token of the completion."""
        return self._before - 1 + len(self.found)

    def take(self, logits: NDArray[np.float32]) -> None:
        """See `Work`."""
        self.found += self._read(logits, len(self.found))
        self.over = len(self.found) == self._count
