"""The scheduler of a pool, as an interface: behind it an engine answers many requests at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...tasks import Prompt
from ...vector import MicroVector
from .request import Finish, Piece, Request

Report: TypeAlias = Callable[[Piece | Finish | BaseException], None]
"""What a scheduler calls, from a thread of its own, with each piece of an answer and at last with its end.

The end is a `Finish`, or the error that the answer failed with. The call returns at once and raises nothing.
"""


@dataclass(frozen=True)
class Load:
    """How busy a scheduler is, in requests: those that are being answered, and those that wait."""

    running: int
    waiting: int


class Ticket(Protocol):
    """A request that was submitted.

    Attributes:
        cancelled: nobody wants the answer any more. To set it is to give the request up where no lock may be
            taken, in the garbage collector say; `cancel` also lets it wait no longer.
    """

    cancelled: bool

    def cancel(self) -> None:
        """Give the request up: what it holds is free after the engine's step of the moment.

        Nothing is reported any more. Again, or after its end, it does nothing. Any thread may call it.
        """


class Scorer(Protocol):
    """What tells how likely given answers are under vectors of one's choice. One thread uses it at a time."""

    def score_under(
        self,
        vectors: Sequence[MicroVector | None],
        prompt: Sequence[int],
        answers: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
    ) -> list[list[NDArray[np.float32]]]:
        """Return the log-probabilities of answers to a prompt under every vector.

        Args:
            vectors: None for the base alone.
            prompt: token ids.
            answers: token ids of each, with the token that ends it.
            temperature: above 0; of the distribution softmax(logits / temperature).

        Returns:
            Of each vector, for each answer: float32 [n], natural logarithms, one a token. NaN where the
            model's logits are not finite: the vector is too large.

        Raises:
            VectorError: the prompt or an answer is empty, the temperature is not above 0, or a vector does
                not fit the basis.
            TinyLoraError: it is closed, or its model is.
        """

    def close(self) -> None:
        """Free what it holds; the model stays."""


class Scheduler(Protocol):
    """The engine's side of a pool. Any thread may call it."""

    @property
    def n_ctx(self) -> int:
        """Tokens of the longest sequence, prompt and answer."""

    def encode(self, prompt: Prompt, *, raw: bool) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return the tokens of a prompt, and the stop texts of the model's chat format.

        Raises:
            RequestError: the messages are none that the model's chat template renders, or it has none.
        """

    def submit(self, request: Request, report: Report) -> Ticket:
        """Let a request wait for its turn, and be answered.

        The answer is the one that the request would get alone, whatever is answered beside it.

        Raises:
            RequestError: the prompt is empty or does not fit, or its schema is none that the engine knows.
            OverloadError: too many requests wait.
            TinyLoraError: the scheduler is closed.
        """

    def load(self) -> Load:
        """Return how busy it is."""

    def scorer(self) -> Scorer:
        """Return what scores answers beside those that are being given, over the same weights.

        Raises:
            TinyLoraError: the engine cannot make it, or the scheduler is closed.
        """

    def close(self) -> None:
        """End what is being answered with a `TinyLoraError`, and free everything but the model."""
