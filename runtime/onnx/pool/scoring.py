"""How likely given answers are under any vector, on the graph of a pool: what clicks are learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ....basis import Basis
from ....errors import TinyLoraError, VectorError
from ....vector import MicroVector
from .engine import CHUNK, RowEngine


class RowScorer:
    """What evaluates prompts with answers under one vector after another; see `Scorer`.

    It runs the session of a pool beside it, with cells of its own. Vectors come one after another: a whole
    sequence at once keeps every core busy, and the logits of many would take hundreds of MB.

    Args:
        engine: of its own, over the session of the pool's.
        basis: of the vectors.
        check: called before each use; raises where the pool is closed.
    """

    def __init__(self, engine: RowEngine, basis: Basis, check: Callable[[], None]) -> None:
        self._engine: RowEngine | None = engine
        self._basis, self._check = basis, check

    def score_under(
        self,
        vectors: Sequence[MicroVector | None],
        prompt: Sequence[int],
        answers: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
    ) -> list[list[NDArray[np.float32]]]:
        """Return the log-probabilities of answers to a prompt under every vector; see `Scorer`."""
        engine = self._engine
        self._check()
        if engine is None:
            raise TinyLoraError("the scorer is closed: make another one")
        if not temperature > 0:
            raise VectorError(f"completions are scored at a temperature above 0, not at {temperature}")
        values = [0.0 if vector is None else self._basis.values(vector).reshape(-1) for vector in vectors]
        found = []
        for row in values:
            engine.values[0] = row
            found.append([self._score(engine, prompt, answer, temperature) for answer in answers])
        return found

    def close(self) -> None:
        """Free the cells; the session is the pool's. Again is fine."""
        self._engine = None

    def _score(
        self, engine: RowEngine, prompt: Sequence[int], answer: Sequence[int], temperature: float
    ) -> NDArray[np.float32]:
        if not prompt or not answer:
            raise VectorError("a prompt and its answer need a token each")
        tokens, first = [*prompt, *answer][:-1], len(prompt) - 1  # the last is read and never evaluated
        for begin in range(0, first, CHUNK):
            engine.prefill(0, begin, tokens[begin : min(begin + CHUNK, first)], last=False)
        found = np.empty(len(answer), np.float32)
        for begin in range(first, len(tokens), engine.tail):
            part = tokens[begin : begin + engine.tail]
            logits = engine.evaluate(0, begin, part)
            at = begin - first
            found[at : at + len(part)] = _logprobs(logits, answer[at : at + len(part)], temperature)
        if not np.isfinite(found).all():  # no mask hides what is in the cells
            engine.erase(0)
        return found


def _logprobs(logits: NDArray[np.float32], tokens: Sequence[int], temperature: float) -> NDArray[np.float64]:
    """Return log softmax(logits / temperature) of a token a row, float64 [rows]."""
    found = np.empty(len(tokens))
    for row, token in enumerate(tokens):  # a row at a time: the vocabulary is large
        exact = logits[row].astype(np.float64) / temperature
        top = exact.max()
        with np.errstate(invalid="ignore"):
            found[row] = exact[token] - top - np.log(np.exp(exact - top).sum())
    return found
