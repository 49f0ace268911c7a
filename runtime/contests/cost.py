"""The cost of a contestant: what a request takes with it on this machine, and what travels."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...tasks import Sample
from ..model import PersonalizedModel
from .contestant import Contestant

TIMED_TOKENS = 16
"""Tokens that a timed request generates, at most: enough for a speed."""


@dataclass(frozen=True)
class Cost:
    """The cost of a contestant.

    Attributes:
        prompt_tokens: mean of a request, chat template included.
        sent: bytes that travel to a device for it.
        shipped: bytes of its texts in UTF-8, which come with the app.
        making_s: seconds that it took to make; None where nobody knows.
        first_token_s: seconds from a request to its first token, with nothing cached: median on this machine.
        next_first_token_s: the same right after another request of the same contestant, whose beginning the
            engine has not forgotten.
        tokens_per_s: tokens a second behind the first. These three are None where they were not measured.
    """

    prompt_tokens: float
    sent: int
    shipped: int
    making_s: float | None = None
    first_token_s: float | None = None
    next_first_token_s: float | None = None
    tokens_per_s: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the figures as JSON takes them."""
        return asdict(self)


@dataclass
class Clock:
    """The times of one contestant's requests on this machine.

    Args:
        llm: the model that answers.
        contestant: whose vector it gets.
        prompts: samples with the contestant's preamble before them.
        most: tokens that a request generates, at most.
    """

    llm: PersonalizedModel
    contestant: Contestant
    prompts: Sequence[Sample]
    most: int = TIMED_TOKENS

    def __post_init__(self) -> None:
        self._first: list[float] = []
        self._next: list[float] = []
        self._rest: list[tuple[int, float]] = []

    def warm(self) -> None:
        """Make a request that is not timed: the first one of a model touches its memory."""
        self._request(self.prompts[0], 1)

    def take(self, number: int) -> None:
        """Time two requests: one after everything was forgotten, and one right behind it."""
        first, second = (self.prompts[(number + i) % len(self.prompts)] for i in (0, 1))
        if self.contestant.vector is None:  # either way the engine forgets what it has cached
            self.llm.clear()
        else:
            self.llm.swap(self.contestant.vector)
        times = self._request(first, self.most)
        self._first.append(times[0])
        self._rest.append((len(times) - 1, times[-1] - times[0]))
        self._next.append(self._request(second, 1)[0])

    def figures(self) -> dict[str, float | None]:
        """Return the times, as `Cost` names them."""
        if not self._first:
            return {}
        tokens, seconds = map(sum, zip(*self._rest, strict=True))
        return {
            "first_token_s": statistics.median(self._first),
            "next_first_token_s": statistics.median(self._next),
            "tokens_per_s": tokens / seconds if tokens else None,
        }

    def _request(self, sample: Sample, most: int) -> list[float]:
        """Return the seconds from the request to each of its tokens, or to its end where it has none."""
        start = time.perf_counter()
        tokens = self.llm._greedy(self.llm._encode(sample))
        times = [time.perf_counter() - start for _ in itertools.islice(tokens, most)]
        close = getattr(tokens, "close", None)
        if close is not None:  # a stream that is left open keeps the model
            close()
        return times or [time.perf_counter() - start]


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of what lies in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)
