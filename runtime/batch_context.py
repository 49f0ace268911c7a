"""An engine whose rows generate or score sequences side by side: what a batch gives its work to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .engine import Engine, Part, Vocabulary
from .sampling import draw
from .schema import Grammar

_SCORED = 64
"""Tokens scored at once: more would take memory (their logits 200 kB each) and no less time."""

Read: TypeAlias = Callable[[NDArray[np.float32], int, int, int], list[Any]]
"""Logits [n, vocabulary], the numbers of prompt and completion, and the number of the token that the first
row belongs to -> what to keep of each row."""


@dataclass(frozen=True)
class Generation:
    """One sequence that was generated.

    Attributes:
        prompt: index of its prompt in the call.
        tokens: int32 [n], with the end-of-generation token where there was one.
        logprobs: float32 [n], natural logarithm, of each token under the distribution it was drawn
            from: softmax(logits / temperature), or softmax(logits) for greedy decoding; with a schema
            over the tokens that it allows there.
        ended: it ended by itself, within the limit.
        exploded: it ended where the model's logits were no longer finite, because the vector is too large for
            the model. It may have no tokens then.
    """

    prompt: int
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ended: bool
    exploded: bool = False


class Stopped(Exception):  # noqa: N818 - not an error
    """It was given up: its time is over, the batch was closed, or another context failed."""


@dataclass(eq=False)
class Running:
    """A sequence that is generated; those of one group have one vector, and run together."""

    group: int
    r: NDArray[np.float32] | None
    prompt: Sequence[int]
    index: int  # of the prompt in the call
    uniform: NDArray[np.float64]  # [max_tokens], what decides each draw
    grammar: Grammar | None = None  # what the answer keeps to
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    exploded: bool = False

    @property
    def length(self) -> int:
        """Tokens at most."""
        return len(self.prompt) + len(self.uniform)

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self.ended or self.exploded or len(self.tokens) == len(self.uniform)

    def generation(self) -> Generation:
        """Return what was generated."""
        tokens, found = np.array(self.tokens, np.int32), np.array(self.logprobs, np.float32)
        return Generation(self.index, tokens, found, self.ended, self.exploded)


@dataclass(eq=False)
class Scored:
    """A completion that is scored; see `Running`."""

    group: int
    r: NDArray[np.float32] | None
    prompt: Sequence[int]
    index: int  # of the prompt in the call
    completion: Sequence[int]
    number: int  # of the completion among those of the prompt
    found: list[Any] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)

    @property
    def tokens(self) -> list[int]:
        """What is evaluated: the last one is read and never evaluated."""
        return [*self.prompt, *self.completion[:-1]]


class BatchContext:
    """An engine whose rows run sequences side by side; its last has the prompt that they start from."""

    def __init__(
        self, engine: Engine, vocabulary: Vocabulary, cells: int | None, stopped: Callable[[], bool]
    ) -> None:
        self.engine = engine
        self._vocabulary, self._cells, self._stopped = vocabulary, cells, stopped
        self._source = engine.rows - 1
        self._prompt: Sequence[int] = ()  # that the source row has
        self._r: NDArray[np.float32] | None = None
        self._logits = np.empty((1, 0), np.float32)  # after it

    def generate(self, waiting: list[Running], temperature: float, ended: Callable[[], None]) -> None:
        """Generate sequences to their ends; one that ends makes room for the next."""
        self._reset()
        running: dict[int, Running] = {}
        free, ahead = list(range(self._room(waiting)))[::-1], iter(waiting)

        def add(drawn: dict[int, Running], logits: NDArray[np.float32]) -> None:
            """Draw the next token of the sequences in some rows; let those go that end."""
            uniform = np.array([each.uniform[len(each.tokens)] for each in drawn.values()])
            exploded = []
            found = draw(_allowed(logits, [*drawn.values()]), temperature, uniform)
            for (row, sequence), token, logprob in zip(drawn.items(), *found, strict=True):
                if token < 0:
                    exploded.append(row)
                    continue
                sequence.tokens.append(int(token))
                sequence.logprobs.append(float(logprob))
                sequence.ended = self._vocabulary.ends(int(token))
                if sequence.grammar is not None and not sequence.ended:
                    sequence.grammar.accept(int(token))
            for row in {gone for each in exploded for gone in self.engine.purge(each)} & running.keys():
                running[row].exploded = not running[row].over
            for row in [row for row, each in running.items() if each.over]:
                running.pop(row).grammar = None
                self.engine.cut(row, 0)
                free.append(row)
                ended()

        while True:
            while free and (sequence := next(ahead, None)) is not None:
                row = free.pop()
                running[row] = sequence
                sequence.grammar = sequence.grammar and sequence.grammar.copy()
                add({row: sequence}, self._start(row, sequence))
            if not running:
                return
            active = {row: running[row] for row in sorted(running)}
            add(active, self._evaluate([Part(row, each.tokens[-1:]) for row, each in active.items()]))

    def score(self, given: list[Scored], read: Read) -> None:
        """Read logits wherever a token of the given completions stands."""
        self._reset()
        alike: dict[int, list[Sequence[int]]] = {}
        for each in given:
            alike.setdefault(each.group, []).append(each.prompt)
        shared = {group: common_prefix(prompts) for group, prompts in alike.items()}
        size = self._room(given)
        for start in range(0, len(given), size):
            rows = dict(enumerate(given[start : start + size]))
            for row, each in rows.items():
                prefix = each.prompt[: shared[each.group]]
                if prefix and not self._holds(prefix, each.r):
                    self._hold(prefix, each.r, wanted=0)
                self.engine.set_r(row, each.r)
                self.engine.copy(self._source, row, len(prefix))
            while rows:
                self._score(rows, read)

    def _score(self, rows: dict[int, Scored], read: Read) -> None:
        """Evaluate some more tokens of the completions in the rows; let those go that are read to the end."""
        parts, left = [], _SCORED
        for row, each in rows.items():
            first = len(each.prompt) - 1 + len(each.found)
            tokens = each.tokens[self.engine.length(row) : first + left]
            wanted = min(left, len(each.completion) - len(each.found))
            parts.append(Part(row, tokens, wanted))
            left -= wanted
            if not left:
                break
        logits, at, exploded = self._evaluate(parts), 0, []
        for row, _, wanted in parts:
            found, each = logits[at : at + wanted], rows[row]
            at += wanted
            each.found += read(found, each.index, each.number, len(each.found))
            if not np.isfinite(found.max(axis=1)).all():
                exploded.append(row)
        for row in {gone for each in exploded for gone in self.engine.purge(each)} & rows.keys():
            each = rows[row]
            if rest := len(each.completion) - len(each.found):
                nothing = np.full((rest, logits.shape[1]), np.nan, np.float32)
                each.found += read(nothing, each.index, each.number, len(each.found))
        for row in [row for row, each in rows.items() if len(each.found) == len(each.completion)]:
            del rows[row]
            self.engine.cut(row, 0)

    def _reset(self) -> None:
        self.engine.reset()
        self._prompt, self._r = (), None

    def _room(self, waiting: Sequence[Running] | Sequence[Scored]) -> int:
        """Return how many rows may be used at the same time, at least one."""
        if self._cells is None or not waiting:
            return self._source
        shared = common_prefix([each.prompt for each in waiting])
        longest = max(each.length for each in waiting)
        return max(1, min(self._source, (self._cells - shared) // (longest - shared) - 1))

    def _start(self, row: int, sequence: Running) -> NDArray[np.float32]:
        """Let a row begin with a prompt; return the logits after it, [1, vocabulary]."""
        if not self._holds(sequence.prompt, sequence.r):
            self._logits = self._hold(sequence.prompt, sequence.r, wanted=1).copy()
        if np.isfinite(self._logits.max()):
            self.engine.set_r(row, sequence.r)
            self.engine.copy(self._source, row, len(sequence.prompt))
        return self._logits

    def _holds(self, tokens: Sequence[int], r: NDArray[np.float32] | None) -> bool:
        """Whether the source row has these tokens, and no others."""
        return r is self._r and tokens == self._prompt and self.engine.length(self._source) == len(tokens)

    def _hold(
        self, tokens: Sequence[int], r: NDArray[np.float32] | None, *, wanted: int
    ) -> NDArray[np.float32]:
        """Let the source row have tokens; what it begins with already stays. Return the logits wanted."""
        kept = common_prefix([self._prompt, tokens]) if r is self._r and self._prompt else 0
        self.engine.set_r(self._source, r)
        self.engine.cut(self._source, kept)
        self._prompt, self._r = tokens, r
        return self._evaluate([Part(self._source, tokens[self.engine.length(self._source) :], wanted)])

    def _evaluate(self, parts: list[Part]) -> NDArray[np.float32]:
        if self._stopped():
            raise Stopped
        return self.engine.evaluate(parts)


def _allowed(logits: NDArray[np.float32], sequences: Sequence[Running]) -> NDArray[np.float32]:
    """Return the logits [sequences, vocabulary], those of tokens that a grammar forbids at -infinity."""
    if all(each.grammar is None for each in sequences):
        return logits
    rows = zip(sequences, logits, strict=True)
    return np.stack([row if each.grammar is None else each.grammar.masked(row) for each, row in rows])


def common_prefix(prompts: Sequence[Sequence[int] | NDArray[np.int32]]) -> int:
    """Length of what all prompts begin with, at least one token short of the shortest; 0 for one alone."""
    limit = min(map(len, prompts)) - 1
    for i in range(limit):
        if len({prompt[i] for prompt in prompts}) > 1:
            return i
    return limit if len(prompts) > 1 else 0
