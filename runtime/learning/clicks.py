"""Learning from clicks: two buttons, and no reward function. One model, and a state file for each user.

    clicks = runtime.Clicks(llm)
    first, second = clicks.ask(messages, clicks.vector("me.state"))   # show both
    llm.swap(clicks.prefer("me.state", second, first))                # the second one was clicked

Prefer pairs: 20 of them teach a user's vector as much as 80 likes or dislikes. Where the user sees no
difference, call nothing.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.basis import Basis
from tinylora_edge.errors import TrainError
from tinylora_edge.tasks import Prompt
from tinylora_edge.vector import LAST_SEQUENCE, MicroVector

from ..batch import Batch, Generation
from ..model import PersonalizedModel, no_room
from .posterior import Posterior
from .state import beginning, kept, save_state

_CHANGE = 0.6
"""Nats by which a step of the finite differences changes an answer's log-probability, root mean square.

Quantized activations move it by about 0.3 whatever the step, so that a smaller one measures noise.
"""
_DRAWN = 4  # answers drawn for a pair, of which two that differ are returned


@dataclass(frozen=True)
class SampledAnswer:
    """An answer that a user may rate with a click.

    Attributes:
        prompt: token ids.
        tokens: token ids of the answer, with the one that ended it.
        vector: the one that it was drawn under, or the one beneath it alone; None for the base.
        temperature: the one that it was drawn at; 0 for the likeliest tokens.
        text: of the answer. Nothing is learned from it.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    vector: MicroVector | None
    temperature: float = 1.0
    text: str = ""


class Clicks:
    """Learns the vectors of many users from their clicks, by forward passes alone.

    A click costs 2 n evaluations of its prompt and answer, n being the number of values: they give the
    direction in which the answer becomes likelier, and the click is evidence about it (`posterior.py`). So do
    not call it in the thread that draws the buttons. Calls from several threads take turns.

    Args:
        llm: a loaded model, of either engine; it must outlive this, and its own vector is left alone.
        basis: of users' vectors; None for that of `start`, or of 13 numbers.
        start: a vector that all users begin with, such as a trained one. A state holds what clicks say about
            the way from it, but not the start itself: always pass the same. None: users begin with the base,
            and with the basis's prior.
        under: what lies beneath every user's vector; None for what lies beneath the start.
        n_threads: cores to use; by default all that this process may use.

    Raises:
        TrainError: vectors of the basis have more numbers than clicks find.
        VectorError: the start is of another basis, or `under` of none of the model's.
    """

    def __init__(
        self,
        llm: PersonalizedModel,
        *,
        basis: Basis | None = None,
        start: MicroVector | None = None,
        under: MicroVector | None = None,
        n_threads: int | None = None,
    ) -> None:
        self._basis, first = beginning(llm.bases, basis, start)
        under = under or first.under
        self._under = None if under is None else llm.own(under)
        self._llm, self._threads = llm, n_threads
        self._start, self._sequence = first.values.astype(np.float64), 0 if start is None else start.sequence
        # A prior is of vectors, not of steps from one.
        self._prior = self._basis.projection.prior if start is None else None
        self._identity = {"basis": self._basis.digest}  # what a state must share
        self._lock = threading.Lock()

    def vector(self, path: str | PathLike[str]) -> MicroVector:
        """Return a user's current vector; its sequence rises with every click.

        Args:
            path: of the user's state, which need not exist yet.

        Raises:
            TrainError: the state is damaged, or of another basis.
            OSError: it cannot be read.
        """
        return self._vector(self._read(path))

    def ask(
        self,
        prompt: Prompt,
        vector: MicroVector | None,
        *,
        count: int = 2,
        max_tokens: int = 64,
        temperature: float = 0.7,
        seed: int = 0,
    ) -> list[SampledAnswer]:
        """Answer a prompt under a vector, once or several times; the answers differ where enough draws do.

        Args:
            prompt: text, which is one message of the user, or chat messages.
            vector: the one to answer under; None for the base.
            count: how many answers.
            max_tokens: most tokens of each.
            temperature: above 0: without variety there is nothing to choose between.
            seed: of the random numbers: pass another one for every question.

        Raises:
            TrainError: the prompt leaves no room for an answer.
            VectorError: the prompt is empty, or the vector makes the logits non-finite.
        """
        tokens = self._llm.encode(prompt)[0]
        with self._batch(len(tokens), max_tokens) as batch:
            drawn = batch.generate(
                [tokens],
                vectors=[vector],
                samples=count if count == 1 else max(count, _DRAWN),
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
            )
        answers = [each.tokens.tolist() for each in _different(drawn, count)]
        decode = self._llm.chat_tokenizer.decode
        return [SampledAnswer(tuple(tokens), tuple(a), vector, temperature, decode(a)) for a in answers]

    def tell(
        self,
        path: str | PathLike[str],
        answer: SampledAnswer,
        reward: int,
        *,
        scored: Callable[[int, int], None] = lambda done, total: None,
    ) -> MicroVector:
        """Learn that a user liked an answer (+1) or did not (-1); return their new vector.

        Tell about each answer once.

        Args:
            path: of the user's state, which need not exist yet.
            answer: one that `ask` returned, or of the app's own.
            reward: +1 or -1.
            scored: called after each evaluation of the answer, with how many are done and how many there are.

        Raises:
            TrainError: another reward, an empty answer, or a damaged state. Nothing was learned.
            VectorError: the answer was drawn with a vector of another basis. Nothing was learned.
            OSError: the state cannot be read or written. Nothing was learned.
        """
        if isinstance(reward, bool) or reward not in (1, -1):
            raise TrainError(f"a click must be +1 or -1, not {reward!r}")
        with self._lock:
            posterior = self._read(path)
            scores, ratios, at = self._score(posterior, [answer], scored)
            posterior.like(scores[0], ratios[0], at, int(reward))
            return self._keep(path, posterior)

    def prefer(self, path: str | PathLike[str], better: SampledAnswer, worse: SampledAnswer) -> MicroVector:
        """Learn which of two answers to one prompt a user preferred; return their new vector.

        Args:
            path: of the user's state.
            better, worse: the answers, of one prompt under one vector at one temperature.

        Raises:
            TrainError: the prompts, vectors or temperatures differ, the answers do not, or as for `tell`.
                Nothing was learned.
            VectorError, OSError: as for `tell`.
        """
        if better.prompt != worse.prompt or better.vector != worse.vector:
            raise TrainError("only two answers to one prompt under one vector can be compared")
        if better.temperature != worse.temperature:
            raise TrainError(
                f"the answers are drawn at temperatures {better.temperature:g} and {worse.temperature:g}, so "
                "their likelihoods cannot be compared: ask for both at one temperature"
            )
        if better.tokens == worse.tokens:
            raise TrainError(
                "the two answers are the same, so a preference says nothing: ask again, at a higher "
                "temperature"
            )
        with self._lock:
            posterior = self._read(path)
            scores, ratios, at = self._score(posterior, [better, worse])
            posterior.prefer(scores[0], scores[1], (ratios[0], ratios[1]), at)
            return self._keep(path, posterior)

    def _batch(self, prompt: int, answer: int) -> Batch:
        """Return a batch with room for sequences of so many tokens."""
        if (room := prompt + answer) > self._llm.longest:
            raise no_room(prompt, answer, self._llm.longest)
        return Batch(self._llm, n_ctx_seq=room, sequences=_DRAWN, n_threads=self._threads)

    def _score(
        self,
        posterior: Posterior,
        clicked: list[SampledAnswer],
        scored: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[NDArray[np.float64], list[float], NDArray[np.float64]]:
        """Return the scores of answers, float64 [answers, n], their log-ratios, and v0 minus the start.

        v0 is the vector that drew the answers. A score is d log p / d v at v0, by central differences; a
        log-ratio is log p at v0 minus log p at the start. The posterior's step is adapted for the next time.
        """
        if not all(each.tokens for each in clicked):
            raise TrainError("an answer without a token says nothing about a vector")
        prompt, answers = list(clicked[0].prompt), [list(each.tokens) for each in clicked]
        temperature = clicked[0].temperature or 1.0  # a greedy answer is taken for a draw
        vector = clicked[0].vector
        own = vector != self._under  # else the user had no vector of their own when the answer was drawn
        if own and (vector is None or vector.under != self._under):
            raise TrainError(
                "the answer was drawn with another vector beneath: ask for it with what `vector` returns"
            )
        at = self._basis.values(vector).astype(np.float64) if own else np.zeros_like(self._start)
        moved = [values for step in posterior.step * np.eye(len(at)) for values in (at + step, at - step)]
        ends = [at, self._start] if (at != self._start).any() else []
        vectors = [self._of(values) for values in (*moved, *ends)]
        done, total = itertools.count(1), len({each.values.tobytes() for each in vectors}) * len(answers)
        with self._batch(len(prompt), max(map(len, answers))) as batch:
            found = batch.score_each(
                vectors,
                [prompt],
                [answers],
                temperature=temperature,
                answered=lambda: scored(next(done), total),
            )
        totals = np.array([[row.sum(dtype=float) for row in rows] for (rows,) in found])  # [vector, answer]
        ratios = totals[-2] - totals[-1] if ends else np.zeros(len(answers))
        changes = (totals[: len(moved) : 2] - totals[1 : len(moved) : 2]).T / 2
        scores, size = changes / posterior.step, float(np.sqrt((changes**2).mean()))
        if size:
            posterior.step *= float(np.clip(_CHANGE / size, 0.5, 2.0)) ** 0.25
        return scores, ratios.tolist(), at - self._start

    def _read(self, path: str | PathLike[str]) -> Posterior:
        """Return the posterior in a user's file; without one, nothing was clicked."""
        size, prior = self._basis.size, self._prior
        found = kept(path, lambda record: Posterior.of(record, size, prior), self._identity)
        return found or Posterior(size, prior)

    def _keep(self, path: str | PathLike[str], posterior: Posterior) -> MicroVector:
        posterior.clicks += 1
        save_state(Path(path).resolve(), posterior.record(), self._identity)
        return self._vector(posterior)

    def _vector(self, posterior: Posterior) -> MicroVector:
        sequence = min(self._sequence + posterior.clicks, LAST_SEQUENCE)
        return self._of(self._start + posterior.vector(), sequence=sequence)

    def _of(self, values: NDArray[np.float64], **options: Any) -> MicroVector:
        bounded = self._basis.bounded(values, getattr(self._under, "r", None)).astype(np.float32)
        return MicroVector(bounded, basis=self._basis.digest, under=self._under, **options)


def _different(drawn: list[Generation], count: int) -> list[Generation]:
    """Return the first `count` generations that differ; where too few do, also the first ones again."""
    first: dict[tuple[int, ...], Generation] = {}
    for generation in drawn:
        first.setdefault(tuple(generation.tokens.tolist()), generation)
    return [*first.values(), *drawn][:count]
