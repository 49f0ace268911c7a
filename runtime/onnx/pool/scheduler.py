"""The scheduler on ONNX Runtime: one running batch, which requests join and leave at every token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ....basis import Basis
from ....errors import OptionError, RequestError, TinyLoraError, VectorError
from ....system import cores
from ....tasks import Prompt, Sample
from ...lock import Process
from ...pool.answering import Answering, check_length, check_prompt, too_large
from ...pool.grammar import Grammars
from ...pool.places import Places
from ...pool.request import Request
from ...pool.scheduler import Load, Report
from .engine import CHUNK, FEWEST, Described, RowEngine
from .scoring import RowScorer
from .slots import Slot, Slots

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_TOKENIZER_NAME = "tokenizer.json"

_SLOTS = 16
"""Rows unless told otherwise: more of them take longer for each token of everybody's."""


class Tokenizer(Described, Protocol):
    """A model's tokens, texts and chat template: `GenaiModel`."""

    @property
    def eos(self) -> Collection[int]:
        """Tokens that end an answer."""

    @property
    def longest(self) -> int:
        """Tokens that the model was made for at most."""

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be rendered."""

    def encode(self, prompt: Any) -> list[int]:
        """Return the token ids of a text or of chat messages, in which special tokens are text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""

    def stream(self) -> Callable[[int], str]:
        """Return a function that gives the text that each further token adds."""


class Shared(Protocol):
    """A loaded model that a pool is over: `TinyLoraOnnx`."""

    basis: Basis
    _dependents: Any  # what has to be closed before the model is

    def _staying(self) -> AbstractContextManager[None]:
        """Keep the model from being closed during a block, or say that it was."""


class _Vocabulary:
    """The tokens of a model in onnxruntime-genai, as answers need them."""

    def __init__(self, model: Tokenizer) -> None:
        self._model = model

    def ends(self, token: int) -> bool:
        return token in self._model.eos

    def data(self, token: int) -> bytes:  # a part of a character is U+FFFD: genai tells no bytes
        return self._model.decode([token]).encode()

    def speaker(self) -> Callable[[int], bytes]:
        text = self._model.stream()
        return lambda token: text(token).encode()

    @cached_property
    def longest(self) -> int:
        return max(len(self.data(token)) for token in range(self._model.n_vocab))

    def for_grammars(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        path = self._model.bundle.folder / _TOKENIZER_NAME
        try:
            return LLTokenizer(
                path.read_text("utf-8"), n_vocab=self._model.n_vocab, eos_token=sorted(self._model.eos)
            )
        except Exception as error:  # of the tokenizer's own library, any of them
            raise TinyLoraError(
                f"llguidance does not read {path}, so that no answer can keep to a schema: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error


class OnnxScheduler:
    """A batch in which requests of many users are answered: each row is another user's, under his vector.

    A request that comes in gets a slot. Its prompt is evaluated by itself, in parts between the tokens of the
    answers beside it, and then it generates in the running batch until it ends or is given up. A slot keeps
    the prompt of its user's last request, and his next one evaluates only what is new behind it.

    Bit for bit, an answer does not depend on what is answered beside it: see `RowEngine`.

    Args:
        llm: the model, whose `close` closes the scheduler. Its own vector is left alone.
        model: its tokenizer, and the graph.
        contexts: None or 1: there is one batch.
        slots: rows of the batch.
        n_ctx: tokens of the longest sequence; the model's own where that is less.
        waiting: requests that wait at most.
        n_threads: cores to use; by default all that this process may use.

    Raises:
        OptionError: more contexts.
        BaseMismatchError: the graph is none that rows can be computed with.
        TinyLoraError: the model is closed, or computes elsewhere than on the CPU.
    """

    def __init__(
        self,
        llm: Shared,
        model: Tokenizer,
        *,
        contexts: int | None = None,
        slots: int | None = None,
        n_ctx: int = 2048,
        waiting: int = 1024,
        n_threads: int | None = None,
    ) -> None:
        if contexts not in (None, 1):
            raise OptionError(
                f"contexts={contexts}: ONNX Runtime answers everybody in one batch. Pass slots, its rows"
            )
        self._llm, self._model = llm, model
        self._vocabulary = _Vocabulary(model)
        self._grammars = Grammars(self._vocabulary.for_grammars, self._vocabulary.ends)
        self._process = Process()
        self._closing = threading.Lock()
        self.n_ctx = min(n_ctx, model.longest)
        count = slots or _SLOTS
        with llm._staying():
            engine = RowEngine(
                model, size=llm.basis.size, rows=count, n_ctx=self.n_ctx, n_threads=n_threads or cores()
            )
            self._slots: Slots | None = Slots(engine, count)
            self._places = Places(self._slots.all, waiting, lambda slot: (slot.used, slot.row))
            llm._dependents.add(self)
        self._thread = threading.Thread(target=self._work, name="tinylora-pool", daemon=True)
        self._thread.start()

    def encode(self, prompt: Prompt, *, raw: bool) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return the tokens of a prompt; its format has no stop texts. See `Scheduler`."""
        self._process.check()
        try:
            with self._llm._staying():
                check_length(prompt, self.n_ctx, self._vocabulary)
                rendered = Sample.of(prompt, raw=raw).rendered_by(template=self._model.has_chat_template)
                return tuple(self._model.encode(rendered)), ()
        except VectorError as error:  # a model without a template, or messages that it does not take
            raise RequestError(str(error), param="messages") from None
        except UnicodeEncodeError as error:
            raise RequestError(f"the text is none: {error}", param="prompt" if raw else "messages") from None

    def submit(self, request: Request, report: Report) -> Answering:
        """Let a request wait for its turn, and be answered; see `Scheduler`."""
        self._process.check()
        check_prompt(request, self.n_ctx)
        if request.vector is not None:
            self._llm.basis.values(request.vector)
        schema = request.sampling.schema
        grammar = None if schema is None else self._grammars.of(schema)
        with self._llm._staying():
            answering = Answering(
                request,
                report,
                vocabulary=self._vocabulary,
                n_ctx=self.n_ctx,
                withdraw=self._places.withdraw,
                constraint=grammar,
            )
        self._places.add(answering)
        return answering

    def load(self) -> Load:
        """Return how busy it is."""
        return self._places.load()

    def scorer(self) -> RowScorer:
        """Return what scores answers, with cells of its own; see `Scheduler`."""
        slots, size = self._slots, self._llm.basis.size
        self._check_open()
        assert slots is not None  # they go after the pool was closed
        with self._llm._staying():
            engine = RowEngine(
                self._model, size=size, rows=1, n_ctx=self.n_ctx, n_threads=1, beside=slots.engine
            )
        return RowScorer(engine, self._llm.basis, self._check_open)

    def _check_open(self) -> None:
        self._process.check()
        if self._places.closed:
            raise TinyLoraError("the pool is closed: it was, or its model was. Make another one")

    def close(self) -> None:
        """End what is being answered with a `TinyLoraError`, and free everything but the model."""
        if self._process.forked:  # nothing of the engine may be touched there
            return
        self._places.close()
        with self._closing:  # whoever comes second waits: the model may be freed afterwards
            self._thread.join()
            self._places.end()
            self._slots = None

    def _work(self) -> None:
        """Compute until the scheduler is closed."""
        slots = self._slots
        assert slots is not None
        while (running := self._next()) is not None:
            try:
                self._round(slots, running)
            except BaseException as error:  # of the engine: nobody's cells are known any more
                with self._places.changed:
                    for slot in slots.all:
                        slot.cut(0)
                for slot, answering in running.items():
                    self._places.leave(slot, answering, _of_the_engine(error))

    def _next(self) -> dict[Slot, Answering] | None:
        """Return what is being answered, once there is something; None once the scheduler is closed."""
        with self._places.changed:
            while not self._places.closed and not self._places.running:
                self._places.changed.wait()
            return None if self._places.closed else dict(self._places.running)

    def _round(self, slots: Slots, running: dict[Slot, Answering]) -> None:
        """Evaluate a part of the prompts that came in, and a token of every answer."""
        for slot, answering in list(running.items()):
            if answering.cancelled:
                del running[slot]
                self._places.leave(slot, answering, None)
            elif not answering.begun:
                self._begin(slots.engine, slot, answering)
        self._prefill(slots.engine, running)
        self._step(slots, running)

    def _begin(self, engine: RowEngine, slot: Slot, answering: Answering) -> None:
        """Make a slot ready: of what it holds, the beginning of the prompt stays."""
        shared = slot.shared(slot.user, slot.vector, answering.tokens)
        slot.cut(shared)
        if not shared:
            engine.erase(slot.row)
        vector = slot.vector
        engine.values[slot.row] = 0 if vector is None else self._llm.basis.values(vector).reshape(-1)
        answering.cached, answering.begun = shared, True

    def _prefill(self, engine: RowEngine, running: dict[Slot, Answering]) -> None:
        """Evaluate prompts, first come, first served, as many tokens as a part has."""
        left = CHUNK
        for slot, answering in list(running.items()):
            while (missing := len(answering.tokens) - len(slot.tokens)) > 1:
                count, last = _part(missing, engine.tail)
                if count > left:
                    return
                begin = len(slot.tokens)
                tokens = answering.tokens[begin : begin + count]
                logits = engine.prefill(slot.row, begin, tokens, last=last)
                slot.tokens += tokens
                slot.prompt = len(slot.tokens)
                left -= count
                if logits is not None and self._went_on(slot, answering, logits):
                    del running[slot]
                    break

    def _step(self, slots: Slots, running: dict[Slot, Answering]) -> None:
        """Evaluate the last token of every answer, and draw the next one."""
        stepping = {s: a for s, a in running.items() if len(a.tokens) - len(s.tokens) == 1}
        rows = slots.gather(stepping, running)
        if not rows:
            return
        tokens, lengths = [0] * rows, [slots.length(row) for row in range(rows)]
        for slot, answering in stepping.items():
            tokens[slot.row] = answering.tokens[-1]
        logits = slots.engine.step(tokens, lengths)
        for slot, answering in stepping.items():
            slot.tokens.append(answering.tokens[-1])
            if self._went_on(slot, answering, logits[slot.row]):
                del running[slot]

    def _went_on(self, slot: Slot, answering: Answering, logits: NDArray[np.float32]) -> bool:
        """Draw the next token of an answer; let it leave where it ended, and say so."""
        try:
            if not np.isfinite(logits.max()):
                slot.cut(0)
                raise too_large()
            answering.go_on(logits)
        except BaseException as error:
            self._places.leave(slot, answering, error)
            return True
        if answering.end is None:
            return False
        self._places.leave(slot, answering, answering.end)
        return True


def _part(missing: int, tail: int) -> tuple[int, bool]:
    """Return how many tokens of a prompt come next, and whether they are the last: none is left alone."""
    if missing <= tail:
        return missing, True
    count = min(CHUNK, missing - FEWEST)
    return count, False


def _of_the_engine(error: BaseException) -> BaseException:
    if isinstance(error, TinyLoraError):
        return error
    failed = TinyLoraError(f"ONNX Runtime failed: {' '.join(str(error).split())[:300]}")
    failed.__cause__ = error
    return failed
