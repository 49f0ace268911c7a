"""The loop of continuous batching: many sequences run in the rows of an engine, each under its own vector.

`Work` is what runs in a row: a sequence that is generated, or a completion that is scored.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.errors import TinyLoraError, VectorError
from tinylora_edge.vector import AdmittedVector

from .engine import Engine, Part, check_alive
from .plan import Piece, Ready, plan, plan_together
from .sampling import logprobs
from .turns import Queue, Shares, Who

_SLICE = 64
"""Tokens of a row's turn, where a step does not evaluate all rows. Turns are not shorter, since engines move
the rows that they evaluate."""

_WORTH = 16
"""Fewest tokens of a prompt for which a row that holds them is chosen, copied or waited for."""

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
"""Why an answer ended: by itself or at a stop text, at its longest, or by itself behind calls."""

Finished: TypeAlias = Callable[[Any, BaseException | None], None]
"""Called once, from a loop's thread, at the end: with the work, and None or the error that it failed with. It
must not raise."""

Draw: TypeAlias = Callable[[NDArray[np.float32]], int]
"""Logits [vocabulary] -> the next token. VectorError: they are not finite. RequestError: none may follow."""

NOBODY = Who("", "")


@dataclass(eq=False, kw_only=True)
class Work(ABC):
    """Tokens that a row evaluates, and what becomes of the logits behind them.

    Attributes:
        tokens: ids of the prompt's tokens, and of those that followed so far. The list is the work's own.
        finished: see `Finished`.
        vector: under which they are evaluated; None for the base.
        who: whose turns it takes. Only the same tenant reuses what was evaluated for it; for the tenant ""
            nothing is kept.
        prompt: how many of the tokens are the prompt's.
        digest: of the vector's R; empty for the base. Computed once, since loops compare it under their lock.
        cached: tokens of the prompt that were not evaluated again; None before it begins.
        cancelled: nobody wants the rest. Setting it is enough, in the garbage collector too.
        over: nothing more is wanted.
    """

    tokens: list[int]
    finished: Finished
    vector: AdmittedVector | None = None
    who: Who = NOBODY
    cached: int | None = field(default=None, init=False)
    cancelled: bool = field(default=False, init=False)
    over: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)
        self.digest = b"" if self.vector is None else self.vector.digest

    @property
    @abstractmethod
    def first(self) -> int:
        """The number of the first token whose logits are still wanted."""

    @abstractmethod
    def take(self, logits: NDArray[np.float32]) -> None:
        """Take the logits [n, vocabulary] behind the next n tokens that are wanted.

        VectorError: they are not finite.
        """

    def finish(self, error: BaseException | None) -> None:
        """Report the end, once the row is free for others: None, or the error that it failed with."""
        if not self.cancelled:
            self.finished(self, error)


@dataclass(eq=False, kw_only=True)
class Generating(Work):
    """A sequence that is generated.

    Attributes:
        most: tokens of prompt and answer at most.
        draw: the next token of logits.
        ends: whether a token ends the answer.
        heard: called with each token of the answer and its logits; True where the answer ends behind it.
        reason: why it ended, once it has.
        by: the token that it ended with, which is no part of the answer; () where there was none.
    """

    most: int
    draw: Draw
    ends: Callable[[int], bool]
    heard: Callable[[int, NDArray[np.float32]], bool] = lambda token, logits: False
    reason: FinishReason = field(default="length", init=False)
    by: tuple[int, ...] = field(default=(), init=False)

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
        token = self.draw(logits[0])
        if self.ends(token):
            self.reason, self.by, self.over = "stop", (token,), True
            return
        self.tokens.append(token)
        if self.heard(token, logits[0]):
            self.reason, self.over = "stop", True
        self.over = self.over or len(self.tokens) >= self.most


@dataclass(eq=False, kw_only=True)
class Scoring(Work):
    """A completion whose tokens are looked up in the logits before them; it is evaluated, nothing is drawn.

    Attributes:
        tokens: of the prompt when it is made; those of the completion but the last one follow.
        completion: token ids, at least one.
        temperature: see `logprobs`.
        found: log-probabilities of the completion's tokens, so far.
    """

    completion: Sequence[int]
    temperature: float
    found: list[np.float32] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._before = len(self.tokens)
        self.tokens += self.completion[:-1]
        super().__post_init__()

    @property
    def first(self) -> int:
        """See `Work`: the one before the next token of the completion."""
        return self._before - 1 + len(self.found)

    def take(self, logits: NDArray[np.float32]) -> None:
        """See `Work`."""
        at = len(self.found)
        tokens = np.array(self.completion[at : at + len(logits)], np.int32)
        self.found += list(logprobs(logits, tokens, self.temperature))
        self.over = len(self.found) == len(self.completion)


class Busy(NamedTuple):
    """How busy a loop is, in sequences: those in a row, and those that wait for one."""

    running: int
    waiting: int


@dataclass(eq=False)
class Slot:
    """A row of an engine, and what it holds of its last sequence.

    Attributes:
        engine, row: where it is.
        exact: only whole chunks of a prompt are reused, so that the rest is cut as for the prompt alone.
        tenant: whose sequence it was: nobody else may reuse what the row holds.
        vector: digest of the sequence's R; empty for the base.
        tokens: those that the row holds, or begins with.
        prompt: how many of them came as a prompt. What was evaluated for generated tokens is not reused: they
            were computed one at a time, by kernels whose last bits differ.
        after: logits [vocabulary] behind the prompt, where an answer was generated from it.
        used: number of the sequence that used it last, as the loop counts them.
        slice: tokens that it has evaluated in its present turn (`_SLICE`).
    """

    engine: Engine
    row: int
    exact: bool = True
    tenant: str = ""
    vector: bytes = b""
    tokens: list[int] = field(default_factory=list)
    prompt: int = 0
    after: NDArray[np.float32] | None = None
    used: int = 0
    slice: int = 0

    def shared(self, work: Work, *, soon: bool = False) -> int:
        """Return how many of the work's first tokens the row holds.

        With `soon`: how many it will hold once its own prompt is evaluated. It is a whole prompt only where
        the logits behind that are known too.
        """
        if not self.tenant or self.tenant != work.who.tenant or self.vector != work.digest:
            return 0
        holds = self.prompt if soon else min(self.prompt, self.engine.length(self.row))
        whole = isinstance(work, Generating) and holds == work.prompt and (soon or self.after is not None)
        if whole and work.tokens[:holds] == self.tokens[:holds]:
            return holds
        most = max(0, min(holds, work.first))
        alike = next((i for i in range(most) if work.tokens[i] != self.tokens[i]), most)
        return alike // self.engine.chunk * self.engine.chunk if self.exact else alike


class Loop:
    """The loop: a queue of work, and a thread, which alone touches the rows of an engine.

    Whoever wants tokens is a client and submits `Work`: calls and streams of one model, batches, pools,
    learners. All rows generate in one batch, which sequences join and leave at any token. A row keeps what it
    evaluated for a user's next prompt.

    Any thread may call it.

    Args:
        engine: whose rows it owns; it closes it.
        closed: message of the error that work gets because the loop is closed.
        waiting: how much work may wait, where many share the loop (see `Shares`). None: it has one client.
        exact: an answer is the same to the bit, whatever is evaluated before or beside it (see `plan`).

    Attributes:
        n_ctx: tokens of the longest sequence.
    """

    def __init__(
        self, engine: Engine, *, closed: str, waiting: int | None = None, exact: bool = True
    ) -> None:
        self.engine, self.n_ctx = engine, engine.n_ctx
        self._message = closed
        self._exact = exact
        self._slots = [Slot(engine, row, exact) for row in range(engine.rows)]
        self._changed = threading.Condition()  # guards what follows
        self._waiting: Queue[Work] = Queue(waiting or sys.maxsize)
        self._rows = Shares(len(self._slots) if waiting else sys.maxsize, brief=True)
        self._running: dict[Slot, Work] = {}
        self._saved: dict[str, int] = {}  # see `Plan`; the thread's own
        self._closed = False
        self._left = False  # nobody waits for the thread: it frees the engine as it ends
        self._begun = 0  # sequences that got a row
        self._thread: threading.Thread | None = None

    def submit(self, *works: Work) -> None:
        """Let sequences wait for their turns.

        Raises:
            OverloadError: too many wait, of everybody or of this user.
            TinyLoraError: the loop is closed.
        """
        with self._changed:
            if self._closed:
                raise TinyLoraError(self._message)
            check_alive([self._thread] if self._thread else [])
            for work in works:
                self._waiting.add(work.who, work)
            self._place()
            if works and self._thread is None:
                self._start()

    def cancel(self, work: Work) -> None:
        """Give a sequence up: its row is free after the engine's current step. Again does nothing."""
        work.cancelled = True
        with self._changed:
            self._waiting.remove(work.who, work)
            self._changed.notify_all()  # a Ctrl-C may have come between `_place` and its own notify

    def prepare(self) -> None:
        """Empty all rows while nothing runs.

        TinyLoraError: the loop is closed.
        """
        with self._changed:
            if self._closed:
                raise TinyLoraError(self._message)
            for slot in self._slots:
                slot.tenant, slot.used = "", 0
                self.engine.cut(slot.row, 0)

    def drain(self) -> None:
        """Wait until nothing runs; what was cancelled leaves its row at the next step."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def busy(self) -> Busy:
        """Return how busy it is."""
        with self._changed:
            return Busy(len(self._running), len(self._waiting))

    def close(self) -> None:
        """End everything with a `TinyLoraError` and free the engine, after its current step.

        Again is fine; whoever comes second waits.
        """
        mine = threading.current_thread() is self._thread  # the garbage collector's call
        with self._changed:
            self._closed, self._left = True, self._left or mine
            self._changed.notify_all()
        if mine:
            return
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            left = [*self._running.values(), *self._waiting.drain()]
            self._running.clear()
            self._changed.notify_all()
            self.engine.close()
        for work in left:
            work.finish(TinyLoraError(self._message))

    def _place(self) -> None:
        """Give free rows to work that waits. The lock is held."""
        while len(self._waiting):
            free = [slot for slot in self._slots if slot not in self._running]
            found = self._waiting.take(self._rows) if free else None
            if found is None:
                break
            who, work = found
            self._rows.take(who)

            def rank(slot: Slot, work: Work = work) -> tuple[int, ...]:
                has = slot.shared(work)
                return (-has if has >= _WORTH else 0, slot.used, slot.row)

            slot = min(free, key=rank)
            self._begun += 1
            slot.used = self._begun
            self._running[slot] = work
        self._changed.notify_all()

    def _leave(self, slot: Slot, work: Work, error: BaseException | None) -> None:
        """Free a row, and then report the end: the client's next work finds the row free."""
        with self._changed:
            del self._running[slot]
            self._rows.leave(work.who)
            if not self._closed:
                self._place()
            self._changed.notify_all()
        work.finish(error)

    # The thread

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="tinylora-loop", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        """Run what is in the rows until the loop is closed."""
        while self._wait():
            self.step()
        if self._left:
            self.engine.close()

    def _wait(self) -> bool:
        """Wait until there is work in a row; return False once the loop is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._running or self._closed)
            return not self._closed

    def step(self) -> None:
        """Evaluate pieces of prompts and a token of answers, as `plan` says.

        An error of the engine ends the work in the rows of that evaluation, and no other.
        """
        with self._changed:
            turn = dict(self._running)
        self._end_cancelled(turn)
        for slot, work in turn.items():
            if work.cached is None:
                self._begin(slot, work)
        ready = self._ready(turn)
        if self._exact:
            together, alone, self._saved = plan(ready, self._saved, chunk=self.engine.chunk)
        else:
            together, alone, _ = plan_together(ready)
        for pieces in [*([each] for each in alone), together]:
            if pieces:
                self._evaluate(pieces)

    def _ready(self, turn: dict[Slot, Work]) -> list[Ready]:
        """Return the rows that have something to evaluate."""
        with self._changed:
            return [
                Ready(
                    slot.row,
                    work.who.account,
                    self._rows.tokens(work.who),
                    slot.slice > 0,
                    slot.used,
                    self.engine.length(slot.row),
                    len(work.tokens),
                    work.first,
                )
                for slot, work in turn.items()
                if work.cached is not None and self._running.get(slot) is work
            ]

    def _evaluate(self, pieces: Sequence[Piece]) -> None:
        """Evaluate pieces at once, and give each row its logits."""
        works = [(self._slots[each.row], self._running[self._slots[each.row]]) for each in pieces]
        parts = []
        for each, (slot, work) in zip(pieces, works, strict=True):
            held = self.engine.length(each.row)
            parts.append(Part(each.row, work.tokens[held : held + each.size], each.wanted))
            with self._changed:
                self._rows.count(work.who, each.size)
            slot.slice = (slot.slice + each.size) % _SLICE
        try:
            logits = self.engine.evaluate(parts)
        except BaseException as error:
            for slot, work in works:
                slot.tenant = ""
                self._leave(slot, work, error)
            return
        at = 0
        for each, (slot, work) in zip(pieces, works, strict=True):
            rows = logits[at : at + each.wanted]
            at += each.wanted
            if each.wanted:
                if len(work.tokens) == work.prompt and isinstance(work, Generating):
                    slot.after = rows[0].copy()
                self._take(slot, work, rows)

    def _end_cancelled(self, turn: dict[Slot, Work]) -> None:
        """Free the rows of work that was cancelled, and take it out of `turn`.

        Rows that were cancelled before logits were seen are emptied; those whose logits are not finite are
        purged.
        """
        cancelled = [slot for slot, work in turn.items() if work.cancelled]
        unseen = [
            slot
            for slot in cancelled
            if turn[slot].digest and turn[slot].cached is not None and slot.after is None
            if self.engine.length(slot.row)
        ]
        finite: Iterable[bool] = ()
        if unseen:
            try:
                logits = self.engine.evaluate([Part(slot.row, [0], 1) for slot in unseen])
                finite = np.isfinite(logits.max(axis=1))
            except TinyLoraError:  # the rows are empty then
                finite = [True] * len(unseen)
        for slot, is_finite in zip(unseen, finite, strict=True):
            slot.tenant = ""
            if not is_finite:
                self.engine.purge(slot.row)
        for slot in cancelled:
            self._leave(slot, turn.pop(slot), None)

    def _take(self, slot: Slot, work: Work, rows: NDArray[np.float32]) -> None:
        error: BaseException | None = None
        try:
            work.take(rows)
        except BaseException as found:
            error = found
            if isinstance(found, VectorError):  # the logits are not finite, and no mask hides such cells
                self.engine.purge(slot.row)
                slot.tenant, slot.after = "", None
        if error is not None or work.over:
            self._leave(slot, work, error)

    def _begin(self, slot: Slot, work: Work) -> None:
        """Make a row ready: it keeps the beginning of the prompt that it holds, or copies more from another.

        Where another row is still evaluating more of it, this one begins later.
        """
        engine, has = self.engine, slot.shared(work)
        beside = [each for each in self._slots if each is not slot]
        source = max(beside, key=lambda each: each.shared(work), default=slot)
        there = source.shared(work)
        for each in beside:
            begun = (other := self._running.get(each)) is not None and other.cached is not None
            if begun and each.shared(work, soon=True) >= max(has, there) + _WORTH:
                return
        try:
            if there >= has + _WORTH or (there == work.prompt and there > has):
                engine.cut(slot.row, 0)
                engine.copy(source.row, slot.row, has := there)
                slot.after = source.after
            work.cached = engine.cut(slot.row, has)
            engine.set_r(slot.row, None if work.vector is None else work.vector.r)
        except BaseException as error:
            slot.tenant = ""
            engine.purge(slot.row)  # nobody has seen whether what was copied is finite
            self._leave(slot, work, error)
            return
        slot.tenant, slot.vector = work.who.tenant, work.digest
        slot.tokens, slot.prompt = work.tokens, work.prompt
        if work.cached == work.prompt and slot.after is not None:
            self._take(slot, work, slot.after[None])
        else:
            slot.after = None
