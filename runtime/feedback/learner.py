"""Learning from clicks: an app with two buttons, and no reward function."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainError, VectorError
from ...tasks import Prompt
from ...vector import MicroVector
from ..batch import Batch, Generation
from ..llama.model import TinyLoraLlama
from ..llama.prompts import decode, encode
from .posterior import Posterior
from .scoring import check_different, infinite, score
from .state import FeedbackState, read, write

_REMEMBERED = 256  # answers that may still be told about
_DRAWN = 4  # answers drawn for a pair, of which two that differ are shown
_SIDE_BY_SIDE = 2  # vectors that an answer is scored under: threads of their own do not wait for each other


@dataclass(frozen=True)
class Answer:
    """An answer that a `FeedbackLearner` gave.

    Attributes:
        text: the answer, special tokens left out.
        ended: it ended by itself, within the limit of tokens.
        number: which of the tuner's answers it is.
    """

    text: str
    ended: bool
    number: int


@dataclass(frozen=True)
class _Shown:
    prompt: list[int]
    answer: Answer
    tokens: list[int]
    at: NDArray[np.float64]  # the vector it was drawn with
    question: int  # those of one pair share it


class FeedbackLearner:
    """A learner that finds a micro-vector from a user's clicks, by forward passes alone.

        tuner = FeedbackLearner(llm, state="me.state")
        answer = tuner.ask(messages)                # show it, with two buttons
        tuner.tell(answer, +1)                      # or -1
        first, second = tuner.ask_pair(messages)    # or two answers, and the better one is clicked
        tuner.prefer(second, first)
        llm.swap(tuner.vector)

    Prefer pairs: 20 of them taught simulated users' vectors as much as 80 likes or dislikes
    (docs/FEEDBACK.md). Where the user sees no difference, tell nothing.

    A click costs 2 n evaluations of its prompt and answer, n being the number of values: they give the
    direction in which the answer becomes likelier, and a click is evidence about that: see
    `posterior.py`. So `tell` takes seconds: call it in another thread than the one that draws the
    buttons. Calls from several threads take turns.

    With the same seed, questions and clicks the vectors are the same, on one machine and build. Where the app
    is started anew, what was asked since the last click counts as not asked. The last 256 answers are
    remembered while the tuner lives, the state for ever: it is numbers of a fixed layout
    (`runtime/feedback/state.py`), and no text is in it.

    Args:
        llm: a loaded llama.cpp model; it must outlive the tuner, and its own vector is left alone.
        state: a file that keeps what was learned between starts, replaced atomically at every click; it
            need not exist yet. None: nothing is kept.
        seed: of the answers drawn, 0 to 2**64 - 1; a state that exists keeps its own.
        max_tokens: of an answer.
        n_ctx_seq: tokens of the longest prompt with its answer.
        temperature: of answers, above 0: without variety there is nothing to choose between.
        n_threads: cores to use; by default all that this process may use.

    Raises:
        TrainError: an argument is out of its range; the state is damaged.
        BasisMismatchError: the state is another basis's.
        TinyLoraError: llama.cpp cannot make the context.
        FileNotFoundError: the directory of the state does not exist.
        OSError: the state cannot be read.
    """

    def __init__(
        self,
        llm: TinyLoraLlama,
        state: str | PathLike[str] | None = None,
        *,
        seed: int = 0,
        max_tokens: int = 64,
        n_ctx_seq: int = 512,
        temperature: float = 0.7,
        n_threads: int | None = None,
    ) -> None:
        if not isinstance(llm, TinyLoraLlama):
            raise TrainError(
                f"a tuner needs a llama.cpp model, which scores answers, and this is a {type(llm).__name__}: "
                'load it with engine="llama"'
            )
        if not 0 <= seed < 1 << 64:
            raise TrainError(f"seed {seed} is out of range: it is an unsigned 64-bit integer")
        if not 0 < temperature < float("inf"):
            raise TrainError(f"answers are drawn at a temperature above 0, not at {temperature}")
        if not 0 < max_tokens < n_ctx_seq:
            raise TrainError(f"answers of {max_tokens} tokens leave no room for a prompt in {n_ctx_seq}")
        self._llm, self._path = llm, state
        self._max_tokens, self._n_ctx_seq, self._temperature = max_tokens, n_ctx_seq, temperature
        size, prior = llm.basis.size, llm.basis.prior
        found = None if state is None else read(state, llm.basis.digest, size, prior)
        self._state = found or FeedbackState(seed, Posterior(size, prior=prior))
        self._shown: OrderedDict[int, _Shown] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()
        self._batch = Batch(
            llm, n_ctx_seq=n_ctx_seq, sequences=_DRAWN, n_threads=n_threads, lanes=_SIDE_BY_SIDE
        )

    @property
    def vector(self) -> MicroVector:
        """The vector that the clicks so far speak for, in fp32; its sequence is the number of clicks."""
        return self._vector(self._state)

    @property
    def clicks(self) -> int:
        """How many clicks it was told, in this start of the app and in those before."""
        return self._state.clicks

    def ask(self, prompt: Prompt, *, raw: bool = False) -> Answer:
        """Answer a prompt with the vector of now.

        Args:
            prompt: text, which is one message of the user, or chat messages.
            raw: the text goes past the chat template, and the model continues it.

        Raises:
            VectorError: the prompt is empty, or leaves no room for an answer.
        """
        return self._draw(prompt, raw, 1)[0]

    def ask_pair(self, prompt: Prompt, *, raw: bool = False) -> tuple[Answer, Answer]:
        """Answer a prompt twice; the answers differ, unless four draws in a row were the same.

        Raises:
            VectorError: as for `ask`.
        """
        first, second = self._draw(prompt, raw, 2)
        return first, second

    def tell(self, answer: Answer, reward: int) -> MicroVector:
        """Learn that the user liked an answer, or did not; return the vector of now.

        Args:
            answer: one that `ask` or `ask_pair` returned, and nothing was told about yet.
            reward: +1 or -1.

        Raises:
            TrainError: another reward; an answer that was not asked for in this start of the app, or was
                told about. Nothing was learned.
            OSError: the state cannot be written. Nothing was learned.
        """
        if isinstance(reward, bool) or reward not in (1, -1):
            raise TrainError(f"a click is +1 or -1, not {reward!r}")
        with self._lock:
            shown = self._find(answer)
            state = copy.deepcopy(self._state)
            ((score,), (ratio,)) = self._score(state, [shown])
            state.posterior.like(score, ratio, shown.at, int(reward))
            return self._keep(state, [answer])

    def prefer(self, better: Answer, worse: Answer) -> MicroVector:
        """Learn which of the two answers of one `ask_pair` the user preferred; return the vector of now.

        Raises:
            TrainError: they are not the two of one pair, or are the same; else as for `tell`. Nothing was
                learned.
            OSError: as for `tell`.
        """
        with self._lock:
            pair = [self._find(better), self._find(worse)]
            if better.number == worse.number or pair[0].question != pair[1].question:
                raise TrainError(
                    f"answers {better.number} and {worse.number} are not the two of one pair: only those of "
                    "one ask_pair can be compared"
                )
            check_different(pair[0].tokens, pair[1].tokens)
            state = copy.deepcopy(self._state)
            scores, ratios = self._score(state, pair)
            state.posterior.prefer(scores[0], scores[1], (ratios[0], ratios[1]), pair[0].at)
            return self._keep(state, [better, worse])

    def close(self) -> None:
        """Free the contexts; the model and the state stay."""
        with self._lock:
            self._batch.close()

    def __enter__(self) -> FeedbackLearner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _vector(self, state: FeedbackState) -> MicroVector:
        values = state.posterior.vector().astype(np.float32).reshape(self._llm.basis.groups, -1)
        return MicroVector(values, sequence=min(state.clicks, 0xFFFF))

    def _draw(self, prompt: Prompt, raw: bool, count: int) -> list[Answer]:
        tokens = encode(self._llm, prompt, raw=raw).tolist()
        if len(tokens) + self._max_tokens > self._n_ctx_seq:
            raise VectorError(
                f"the prompt has {len(tokens)} tokens, which with {self._max_tokens} to answer pass the "
                f"{self._n_ctx_seq} of a sequence: raise n_ctx_seq, or shorten it"
            )
        with self._lock:
            vector = self.vector
            self._batch.swap(vector)
            drawn = self._batch.generate(
                [tokens],
                samples=count if count == 1 else _DRAWN,
                max_tokens=self._max_tokens,
                temperature=self._temperature,
                seed=(self._state.seed, self._state.asked),
            )
            if any(generation.exploded for generation in drawn):
                raise infinite()
            at = vector.values.astype(np.float64).reshape(-1)
            answers = []
            for generation in _different(drawn, count):
                text = decode(self._llm, generation.tokens)
                answer = Answer(text, generation.ended, self._count)
                shown = _Shown(tokens, answer, generation.tokens.tolist(), at, self._state.asked)
                self._shown[self._count] = shown
                self._count += 1
                answers.append(answer)
            self._state.asked += 1
            while len(self._shown) > _REMEMBERED:
                self._shown.popitem(last=False)
            return answers

    def _find(self, answer: Answer) -> _Shown:
        shown = self._shown.get(answer.number)
        if shown is None or shown.answer != answer:
            raise TrainError(
                f"answer {answer.number} was not asked of this tuner since it was made, or was told about "
                f"already, or {_REMEMBERED} came after it: tell about each answer once, and soon"
            )
        return shown

    def _keep(self, state: FeedbackState, answers: list[Answer]) -> MicroVector:
        """Make a state the one of now, on disk first; the answers are told about."""
        state.clicks += 1
        if self._path is not None:
            write(self._path, state, self._llm.basis.digest)
        self._state = state
        for answer in answers:
            del self._shown[answer.number]
        return self._vector(state)

    def _score(self, state: FeedbackState, shown: list[_Shown]) -> tuple[NDArray[np.float64], list[float]]:
        """Return answers' scores where they were drawn, float64 [answers, n], and their log-ratios."""
        return score(
            self._batch,
            self._llm.basis,
            state,
            shown[0].prompt,
            [each.tokens for each in shown],
            shown[0].at,
            self._temperature,
        )


def _different(drawn: list[Generation], count: int) -> list[Generation]:
    """Return the first so many that differ, or the first where too few do."""
    chosen: list[Generation] = []
    for generation in drawn:
        if len(chosen) < count and all(list(generation.tokens) != list(c.tokens) for c in chosen):
            chosen.append(generation)
    return chosen + drawn[len(chosen) : count]
