"""The scheduler of a pool: requests of many users are answered in the rows of engines, on any engine."""

from __future__ import annotations

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, OptionError, RequestError, TinyLoraError, VectorError
from ..system import cores
from ..tasks import Prompt, Sample
from ..vector import MicroVector
from .answers import Finish, FinishReason, Piece, Report, Request, Sampling, Text, Token
from .engine import Engine, Part, Vocabulary, Weights
from .lock import Process
from .sampling import Sampler, likeliest, logprobs, too_large
from .schema import Grammar, grammar_of
from .turns import Queue, Shares, Who

_SLOTS, _MIXED_SLOTS = 4, 16
"""Slots of an engine unless told otherwise. Where they share evaluations, more of them take longer for each
token of everybody's."""

_SLICE = 16
"""Tokens that a slot generates before the next one of its engine goes on, where they share no evaluation:
another vector costs llama.cpp about as much as a token of a small model."""

_WORTH = 16
"""Tokens of a prompt that are worth a slot's other merits, where it has them."""

_TOGETHER = 8
"""Prompts are cut at multiples of so many tokens, with no fewer at their ends: kernels compute some rows at a
time, and the last ones otherwise, whose last bits are others."""

_USUAL = 4
"""Bytes of a token, about. A prompt of no more than that for each token of the context is not looked at."""

_UNBROKEN = 1 << 10
"""Characters of one kind, letters say, without another between them: tokenizers take them as one word, in
quadratic time."""

_RUN = re.compile(r"\w+|\s+|[^\w\s]+")

_REMEMBERED = 1 << 10
"""Vectors that exploded, of a tenant each, that are remembered; the oldest are forgotten first."""

CLOSED = "the pool is closed: it was, or its model was. Make another one"


@dataclass(frozen=True)
class Load:
    """How busy a scheduler is, in requests: those that are being answered, and those that wait."""

    running: int
    waiting: int


class Answering:
    """A request that waits or is being answered: the ticket of whoever submitted it.

    Attributes:
        request: what is asked.
        tokens: token ids of the prompt, and of the answer so far.
        cached: tokens of the prompt that were not evaluated again; None before it begins.
        cancelled: nobody wants the answer any more. To set it gives the request up where no lock may be
            taken, in the garbage collector say; `cancel` also lets it wait no longer.
        end: how it ended, once it has.
    """

    def __init__(
        self,
        request: Request,
        report: Report,
        *,
        vocabulary: Vocabulary,
        n_ctx: int,
        withdraw: Callable[[Answering], None],
        grammar: Grammar | None,
    ) -> None:
        sampling = request.sampling
        self.request = request
        self.tokens = list(request.prompt)
        self.cached: int | None = None
        self.cancelled = False
        self.end: Finish | None = None
        self._sampler = Sampler(
            sampling.temperature, top_p=sampling.top_p, seed=sampling.seed, number=request.choice
        )
        self._text = Text(sampling.stop, sampling.tools)
        self._most = min(len(self.tokens) + (sampling.max_tokens or n_ctx), n_ctx)
        self._grammar, self._vocabulary, self._speak = grammar, vocabulary, vocabulary.speaker()
        self._withdraw, self._report = withdraw, report

    def report(self, what: Piece | Finish | BaseException) -> None:
        """Report a piece or the end, unless nobody wants it any more."""
        empty = isinstance(what, Piece) and not (what.text or what.tokens or what.calls)
        if not (self.cancelled or empty):
            self._report(what)

    def cancel(self) -> None:
        """Give the request up: what it holds is free after the engine's step of the moment.

        Nothing is reported any more. Again, or after its end, it does nothing.
        """
        self.cancelled = True
        self._withdraw(self)

    def go_on(self, logits: NDArray[np.float32]) -> None:
        """Draw the next token from logits [vocabulary] and report it; `end` is there where it is the last."""
        token = self._sampler(logits, (), self._grammar)
        if token is None or self._vocabulary.ends(token):
            self._finish("stop", () if token is None else (token,))
            return
        if self._grammar is not None:
            self._grammar.accept(token)
        self.tokens.append(token)
        self.report(self._text.add(self._speak(token), self._described(logits, token)))
        if self._text.stopped:
            self._finish("stop")
        elif len(self.tokens) >= self._most:
            self._finish("length")

    def _finish(self, reason: FinishReason, by: tuple[int, ...] = ()) -> None:
        """Report what was held back; the end itself is reported once the place is free."""
        self.report(self._text.rest())
        if reason == "stop" and self._text.calls:
            reason = "tool_calls"
        prompt = len(self.request.prompt)
        said = tuple(self.tokens[prompt:])
        self.end = Finish(reason, prompt, self.cached or 0, len(said), (*said, *by))

    def _described(self, logits: NDArray[np.float32], token: int) -> Token | None:
        count = self.request.sampling.logprobs
        if count is None:
            return None
        best, data = likeliest(logits[None], count)[0], self._vocabulary.data
        own, *others = logprobs(logits[None], np.array([[token, *best]], np.int32))[0].tolist()
        return Token(data(token), own, tuple((data(int(b)), p) for b, p in zip(best, others, strict=True)))


@dataclass(eq=False)
class Slot:
    """A row of an engine, and whose last request it has.

    Attributes:
        engine, row: where it is.
        tenant, vector: of the request; nobody else finds what it has.
        tokens: that the row holds, or begins with.
        prompt: of them, those that came as a prompt. The cells of what was generated are those of one token
            at a time, which other kernels compute, whose last bits are others.
        used: when it was used last, in requests.
    """

    engine: Engine
    row: int
    tenant: str = ""
    vector: MicroVector | None = None
    tokens: list[int] = field(default_factory=list)
    prompt: int = 0
    used: int = 0

    def shared(self, request: Request, *, soon: bool = False) -> int:
        """Return how many tokens of a prompt it has already, or soon, once its own prompt is evaluated."""
        if not request.tenant or request.tenant != self.tenant or request.vector != self.vector:
            return 0
        most = self.prompt if soon else min(self.prompt, self.engine.length(self.row))
        most = max(0, min(most, len(request.prompt) - _TOGETHER))
        alike = next((i for i in range(most) if request.prompt[i] != self.tokens[i]), most)
        return alike // _TOGETHER * _TOGETHER


class Scheduler:
    """Engines over the weights of a loaded model, in whose rows requests of many users are answered.

    A slot keeps what was evaluated for its user's last request, and his next one evaluates only what is new.
    In ONNX Runtime all slots generate in one batch, which requests join and leave at any token. In llama.cpp
    there is an engine a core, whose slots take turns, some tokens each. Who has how many slots and turns:
    `Shares`. An answer does not depend on what is answered beside it. Any thread may call it.

    Args:
        llm: the model, whose `close` closes the scheduler. Its own context and vector are left alone.
        contexts, slots, n_ctx, waiting, n_threads: see `Pool`.

    Attributes:
        n_ctx: tokens of the longest sequence, prompt and answer.

    Raises:
        OptionError: several contexts where one has all rows.
        TinyLoraError: the engine cannot make a context, or the model is closed.
    """

    def __init__(
        self,
        llm: Weights,
        *,
        contexts: int | None = None,
        slots: int | None = None,
        n_ctx: int = 2048,
        waiting: int = 1024,
        n_threads: int | None = None,
    ) -> None:
        if llm.mixed and contexts not in (None, 1):
            raise OptionError(
                f"contexts={contexts}: ONNX Runtime answers everybody in one batch. Pass slots, its rows"
            )
        threads = n_threads or cores()
        count = contexts or (1 if llm.one_engine else threads)
        rows = slots or (_MIXED_SLOTS if llm.mixed else _SLOTS)
        self._llm, self._process = llm, Process()
        self._closing = threading.Lock()
        self._engines: list[Engine] = []
        self._changed = threading.Condition()  # what follows is looked at and changed with it
        self._closed = False
        self._running: dict[Slot, Answering] = {}
        self._waiting: Queue[Answering] = Queue(waiting)
        self._exploded: OrderedDict[bytes, None] = OrderedDict()
        self._begun = 0
        with llm._staying():
            try:
                for _ in range(count):
                    engine = llm.engine(rows=rows, n_ctx=n_ctx, n_threads=max(1, threads // count))
                    self._engines.append(engine)
            except BaseException:
                self._free()
                raise
            self.n_ctx = min(engine.n_ctx for engine in self._engines)
            self._slots = [Slot(engine, row) for engine in self._engines for row in range(rows)]
            self._shares = Shares(len(self._slots))
            llm._dependents.add(self)
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name="tinylora-pool", daemon=True)
            for engine in self._engines
        ]
        for thread in self._threads:
            thread.start()

    def encode(
        self, prompt: Prompt, *, raw: bool, tools: tuple[dict[str, Any], ...] = ()
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return the tokens of a prompt, with the tools that it tells of, and its chat format's stop texts.

        Raises:
            RequestError: the messages are none that the model's chat template renders, or it has none.
        """
        self._process.check()
        if raw and tools:
            raise RequestError("a raw text tells a model of no tools: send chat messages", param="tools")
        try:
            self._check_length(prompt, tools)
            with self._llm._reading():
                tokens, stops = self._llm.encode(replace(Sample.of(prompt, raw=raw), tools=tools))
        except VectorError as error:  # a model without a template, or messages that it does not render
            raise RequestError(str(error), param="messages") from None
        except UnicodeEncodeError as error:
            raise RequestError(f"the text is none: {error}", param="prompt" if raw else "messages") from None
        return tuple(tokens), tuple(stops)

    def submit(self, request: Request, report: Report, grammar: Grammar | None = None) -> Answering:
        """Let a request wait for its turn, and be answered, with the grammar of its own that `grammar` made.

        Raises:
            RequestError: the prompt is empty or does not fit.
            VectorError: the vector fits no basis of the model.
            OverloadError: too many requests wait.
            TinyLoraError: the scheduler is closed.
        """
        self._process.check()
        if not request.prompt:
            raise RequestError("the prompt is empty: it needs one token at least", param="prompt")
        if len(request.prompt) >= self.n_ctx:
            raise _too_long(f"{len(request.prompt)} tokens", str(self.n_ctx))
        mark = self._mark(request)
        with self._llm._reading():  # the vocabulary is the model's
            answering = Answering(
                request,
                report,
                vocabulary=self._llm.vocabulary,
                n_ctx=self.n_ctx,
                withdraw=self._withdraw,
                grammar=grammar,
            )
        with self._changed:
            if self._closed:
                raise TinyLoraError(CLOSED)
            if mark in self._exploded:
                raise too_large()
            self._waiting.add(request.who, answering)
            self._place()
        return answering

    def grammar(self, sampling: Sampling) -> Grammar | None:
        """Return what an answer keeps to, if to anything; it takes some .1 s.

        Raises:
            RequestError: the schema, or one of the tools, is none that becomes a grammar.
            TinyLoraError: the model is closed, or llguidance does not read its tokens.
        """
        schema, tools = sampling.schema, sampling.tools
        try:
            with self._llm._reading():
                if tools is not None:
                    return tools.grammar(self._llm.vocabulary)
                return None if schema is None else grammar_of(schema, self._llm.vocabulary)
        except MissingExtraError as error:
            param = "response_format" if tools is None else "tools"
            raise RequestError(str(error), param=param, code="unsupported_parameter") from error

    def _mark(self, request: Request) -> bytes:
        """Return a digest of a tenant and of what his vector does, empty for the base."""
        r = self._llm.r_of(request.vector)
        return b"" if r is None else sha256(repr(request.tenant).encode() + r.tobytes()).digest()

    def load(self) -> Load:
        """Return how busy it is."""
        with self._changed:
            return Load(len(self._running), len(self._waiting))

    def close(self) -> None:
        """End what is being answered with a `TinyLoraError`, and free everything but the model."""
        if self._process.forked:  # nothing of the engine may be touched there
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with self._closing:  # whoever comes second waits: the model may be freed afterwards
            for thread in self._threads:
                thread.join()
            for answering in [*self._running.values(), *self._waiting.drain()]:
                answering.report(TinyLoraError("the pool is closed: the answer ends here"))
            self._running.clear()
            self._free()

    def _free(self) -> None:
        for engine in self._engines:
            engine.close()

    def _check_length(self, prompt: Prompt, tools: Sequence[dict[str, Any]]) -> None:
        """Check that a prompt may fit before it is rendered, which takes half a minute for a megabyte."""
        if not isinstance(prompt, str) and len(prompt) >= self.n_ctx:  # each has a token at least
            raise _too_long(f"{len(prompt):,} messages", f"{self.n_ctx} tokens")
        parts = [prompt] if isinstance(prompt, str) else [each.get("content") or "" for each in prompt]
        texts = [*map(str, [*parts, *tools])]
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if size > _USUAL * self.n_ctx and size > (most := self.n_ctx * self._llm.vocabulary.longest):
            raise _too_long(f"{size:,} bytes", f"{self.n_ctx} tokens, of {most:,} bytes at most,")
        longest = max((len(run[0]) for text in texts for run in _RUN.finditer(text)), default=0)
        if longest > _UNBROKEN:
            raise RequestError(
                f"the prompt has a word of {longest:,} characters, and at most {_UNBROKEN:,} are made tokens "
                "at once: break it with spaces",
                param="messages",
            )

    def _withdraw(self, answering: Answering) -> None:
        with self._changed:
            self._waiting.remove(answering.request.who, answering)

    def _place(self) -> None:
        """Give free slots to requests that wait. The lock is held."""
        while len(self._waiting) and (free := [slot for slot in self._slots if slot not in self._running]):
            if (found := self._waiting.take(self._shares)) is None:
                return
            who, answering = found
            request, busy = answering.request, Counter(id(slot.engine) for slot in self._running)

            def rank(slot: Slot, request: Request = request, busy: Counter[int] = busy) -> tuple[int, ...]:
                has = slot.shared(request)
                return (-has if has >= _WORTH else 0, busy[id(slot.engine)], slot.used, slot.row)

            slot = min(free, key=rank)
            self._begun += 1
            slot.used = self._begun
            self._running[slot] = answering
            self._shares.take(who)
            self._changed.notify_all()

    def _leave(self, slot: Slot, answering: Answering, end: Finish | BaseException | None) -> None:
        """Free a slot, and then report the end: the tenant's next request finds the slot free."""
        with self._changed:
            del self._running[slot]
            self._shares.leave(answering.request.who)
            if not self._closed:
                self._place()
        if end is not None:
            answering.report(end)

    # The thread of an engine

    def _work(self, engine: Engine) -> None:
        """Answer in one engine until the scheduler is closed."""
        before = -1, Who("", "")
        while turn := self._next(engine, before):
            slot, first = next(iter(turn.items()))
            before = slot.row, first.request.who
            for _ in range(1 if engine.mixed else _SLICE):
                try:
                    generated = self._step(engine, turn)
                except BaseException as error:
                    for slot, answering in turn.items():
                        self._leave(slot, answering, error)
                    break
                if self._closed or not generated:  # a chunk that does not end a prompt is a slice of its own
                    break

    def _next(self, engine: Engine, before: tuple[int, Who]) -> dict[Slot, Answering]:
        """Return what an engine answers, once there is something; nothing once the scheduler is closed.

        Where slots share no evaluation it is that of the account that had fewest turns, in any engine, and
        among equals not the last one, before which a newcomer goes; of its tenants likewise, and of a
        tenant's slots the one after the last row.
        """
        row, last = before

        def rank(slot: Slot) -> tuple[int, bool, int, bool, bool, int]:
            who = self._running[slot].request.who
            account, tenant = self._shares.turns(who)
            return account, who.account == last.account, tenant, who == last, slot.row <= row, slot.row

        with self._changed:
            while not self._closed:
                running = {slot: each for slot, each in self._running.items() if slot.engine is engine}
                if running and not engine.mixed:
                    slot = min(running, key=rank)
                    self._shares.turn(running[slot].request.who)
                    return {slot: running[slot]}
                if running:
                    return running
                self._changed.wait()
            return {}

    def _step(self, engine: Engine, turn: dict[Slot, Answering]) -> bool:
        """Evaluate a chunk of new prompts and a token of every answer; True where all are at answers."""
        for slot, answering in list(turn.items()):
            if answering.cancelled:
                del turn[slot]
                self._leave(slot, answering, None)
            elif answering.cached is None:
                self._begin(slot, answering)
        parts = list(self._parts(engine, turn))
        if not parts:
            return False
        logits = iter(engine.evaluate([part for _, part in parts]))
        ends: dict[Slot, Finish | BaseException] = {}
        for slot, part in parts:
            if part.wanted:
                try:
                    turn[slot].go_on(next(logits))
                except BaseException as error:
                    ends[slot] = error
                else:
                    if (end := turn[slot].end) is not None:
                        ends[slot] = end
        for slot, how in ends.items():
            if isinstance(how, VectorError):  # not finite, and no mask hides that
                engine.purge(slot.row)
                if turn[slot].request.vector is not None:
                    with self._changed:
                        self._exploded[self._mark(turn[slot].request)] = None
                        if len(self._exploded) > _REMEMBERED:
                            self._exploded.popitem(last=False)
            self._leave(slot, turn.pop(slot), how)
        return bool(turn) and all(part.wanted for _, part in parts)

    def _begin(self, slot: Slot, answering: Answering) -> None:
        """Make a slot ready: it keeps the beginning of the prompt, or copies it from another slot.

        Where another one evaluates more of it at the moment, the slot begins later.
        """
        request, engine, has = answering.request, slot.engine, slot.shared(answering.request)
        beside = [each for each in self._slots if each.engine is engine and each is not slot]
        source = max(beside, key=lambda each: each.shared(request), default=slot)
        there = source.shared(request)
        for each in beside:
            begun = (other := self._running.get(each)) is not None and other.cached is not None
            if begun and each.shared(request, soon=True) >= max(has, there) + _WORTH:
                return
        if there >= has + _WORTH:
            engine.cut(slot.row, 0)
            engine.copy(source.row, slot.row, has := there)
        answering.cached = engine.cut(slot.row, has)
        engine.set_r(slot.row, self._llm.r_of(request.vector))
        slot.tenant, slot.vector, slot.tokens = request.tenant, request.vector, answering.tokens
        slot.prompt = len(request.prompt)

    def _parts(self, engine: Engine, turn: dict[Slot, Answering]) -> Iterator[tuple[Slot, Part]]:
        """Yield what is evaluated next: prompts first come, first served, and the last token of answers."""
        left = engine.chunk
        for slot, answering in turn.items():
            if answering.cached is None:
                continue
            begin = engine.length(slot.row)
            missing = len(answering.tokens) - begin
            count = missing
            if missing > engine.chunk:
                count = min(engine.chunk, missing - _TOGETHER) // _TOGETHER * _TOGETHER
            if count > 1:
                left -= count
                if left < 0:
                    continue
            tokens = answering.tokens[begin : begin + count]
            yield slot, Part(slot.row, tokens, int(count == missing))


def _too_long(size: str, room: str) -> RequestError:
    return RequestError(
        f"the prompt has {size}, and the context {room} for prompt and answer: shorten it, or serve with a "
        "larger n_ctx",
        param="messages",
        code="context_length_exceeded",
    )
