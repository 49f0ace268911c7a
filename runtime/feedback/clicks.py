"""Clicks of many users on answers that a pool gave them: a posterior each, over one model."""

from __future__ import annotations

import threading
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import TrainError
from ...vector import MicroVector
from ..batch import Batch
from .given import Given
from .posterior import Posterior
from .scoring import check_different, score
from .state import FeedbackState, read, write


class Clicks:
    """A learner for many users, each with a state in a file; see `FeedbackLearner`, which is for one.

    A click takes 2 n evaluations of its prompt and answer. Calls from several threads take turns.

    Args:
        basis: of the vectors.
        scorer: that evaluates answers: `Pool.scorer`, or a `Batch` of llama.cpp. It is closed with this.
        start: a vector that all users begin with, trained say: clicks move it, and what they say is how far
            from it. A state is of one start, which it does not name. None: they begin with the base, and
            the basis's prior says what people want.
    """

    def __init__(self, basis: Basis, scorer: Batch, *, start: MicroVector | None = None) -> None:
        self._basis, self._scorer = basis, scorer
        self._start = np.zeros(basis.size) if start is None else start.values.astype(np.float64).reshape(-1)
        self._prior = basis.prior if start is None else None  # it is about vectors, not about steps
        self._lock = threading.Lock()

    def tell(self, path: str | PathLike[str], given: Given, reward: int) -> MicroVector:
        """Learn that a user liked an answer (+1), or did not (-1); return what his vector should be now.

        Args:
            path: of the user's state, which need not exist yet.
            given: the answer.
            reward: +1 or -1.

        Raises:
            TrainError: another reward, an empty answer, or a damaged state. Nothing was learned.
            OSError: the state cannot be read or written. Nothing was learned.
        """
        if isinstance(reward, bool) or reward not in (1, -1):
            raise TrainError(f"a click is +1 or -1, not {reward!r}")
        with self._lock:
            state, (scores, ratios) = self._scored(path, [given])
            at = given.at(self._basis.size) - self._start
            state.posterior.like(scores[0], ratios[0], at, int(reward))
            return self._keep(path, state)

    def prefer(self, path: str | PathLike[str], better: Given, worse: Given) -> MicroVector:
        """Learn which of two answers to one prompt a user preferred; return what his vector should be now.

        Args:
            path: of the user's state.
            better, worse: the answers, of one prompt under one vector.

        Raises:
            TrainError: they are not, or are the same, or as for `tell`. Nothing was learned.
            OSError: as for `tell`.
        """
        if better.prompt != worse.prompt or better.vector != worse.vector:
            raise TrainError("only two answers to one prompt under one vector can be compared")
        check_different(better.tokens, worse.tokens)
        with self._lock:
            state, (scores, ratios) = self._scored(path, [better, worse])
            at = better.at(self._basis.size) - self._start
            state.posterior.prefer(scores[0], scores[1], (ratios[0], ratios[1]), at)
            return self._keep(path, state)

    def close(self) -> None:
        """Free what evaluates; the model and the states stay."""
        with self._lock:
            self._scorer.close()

    def _scored(
        self, path: str | PathLike[str], given: list[Given]
    ) -> tuple[FeedbackState, tuple[NDArray[np.float64], list[float]]]:
        size, prior = self._basis.size, self._prior
        if not all(each.tokens for each in given):
            raise TrainError("an answer without a token says nothing about a vector")
        state = read(path, self._basis.digest, size, prior) or FeedbackState(0, Posterior(size, prior=prior))
        tokens = [list(each.tokens) for each in given]
        at = given[0].at(size)
        temperature = given[0].temperature or 1.0  # a greedy answer is taken for a draw
        prompt = list(given[0].prompt)
        start = self._start
        return state, score(self._scorer, self._basis, state, prompt, tokens, at, temperature, start)

    def _keep(self, path: str | PathLike[str], state: FeedbackState) -> MicroVector:
        state.clicks += 1
        write(path, state, self._basis.digest)
        values = (self._start + state.posterior.vector()).astype(np.float32)
        return MicroVector(values.reshape(self._basis.groups, -1))
