"""The scheduler on llama.cpp: a thread a context, and in each context slots that take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import llama_cpp

from ....errors import RequestError, TinyLoraError, VectorError
from ....system import cores
from ....tasks import Prompt
from ....vector import MicroVector
from ...batch import Batch
from ...lock import Process
from ...pool.answering import Answering, check_length, check_prompt
from ...pool.grammar import Grammars
from ...pool.places import Places
from ...pool.request import Finish, Request
from ...pool.scheduler import Load, Report
from ..prompts import encode_with_stops
from ..protocols import Weights
from .context import CHUNK, Context, Slot
from .vectors import ContextVectors

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_SLOTS = 4
"""Slots of a context unless told otherwise."""

_SLICE = 16
"""Tokens that a slot generates before the next one of its context goes on: another vector costs llama.cpp
about as much as a token of a small model."""


class _Vocabulary:
    """The tokens of a llama.cpp model, as answers need them."""

    def __init__(self, llm: Weights) -> None:
        self._llm = llm
        self.vocab = llama_cpp.llama_model_get_vocab(llm.model)

    def ends(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def data(self, token: int) -> bytes:
        return self._llm.detokenize([token])

    def speaker(self) -> Callable[[int], bytes]:
        return self.data

    @cached_property
    def longest(self) -> int:
        return max(len(self.data(token)) for token in range(self._llm.n_vocab()))

    def for_grammars(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        ending = [token for token in range(self._llm.n_vocab()) if self.ends(token)]
        if not ending:
            raise TinyLoraError("the model has no token that ends an answer, so none can keep to a schema")
        return LLTokenizer(TokenizerWrapper(_Tokens(self._llm, ending)), eos_token=ending)


class _Tokens:
    """The tokens of a llama.cpp model, as llguidance takes them: bytes, which special ones have none of."""

    bos_token_id = None

    def __init__(self, llm: Weights, ending: Sequence[int]) -> None:
        self._llm = llm
        self.tokens = [llm.detokenize([token]) for token in range(llm.n_vocab())]
        self.eos_token_id, self.special_token_ids = ending[0], list(ending)

    def __call__(self, text: bytes) -> list[int]:
        return self._llm.tokenize(text, add_bos=False, special=False)


class LlamaScheduler:
    """Contexts over the weights of a loaded model, in which requests of many users are answered.

    A slot of a context has the KV cells of one user under one vector. His next request goes there, and only
    what is new in its prompt is evaluated. The slots of a context take turns, some tokens each; a sequence is
    computed alone, so that an answer does not depend on what is answered beside it.

    Args:
        llm: the model, whose `close` closes the scheduler. Its own context and vector are left alone.
        contexts: that compute side by side; by default one a core, and one alone on a GPU.
        slots: of each context, 4 unless told otherwise.
        n_ctx: tokens of the longest sequence.
        waiting: requests that wait at most.
        n_threads: cores to use; by default all that this process may use.

    Raises:
        TinyLoraError: llama.cpp cannot make a context, or the model is closed.
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
        threads = n_threads or cores()
        on_gpu = llm.model_params.n_gpu_layers and llama_cpp.llama_supports_gpu_offload()
        count = contexts or (1 if on_gpu else threads)
        self._llm = llm
        self._vocabulary = _Vocabulary(llm)
        self._grammars = Grammars(self._vocabulary.for_grammars, self._vocabulary.ends)
        self._process = Process()
        self._closing = threading.Lock()
        self._contexts: list[Context] = []
        with llm._staying():
            self._vectors = ContextVectors(llm)
            try:
                for number in range(count):
                    each = Context(
                        llm, slots=slots or _SLOTS, n_ctx=n_ctx, n_threads=max(1, threads // count)
                    )
                    self._contexts.append(each)
                    self._vectors.add(number, each.context)
            except BaseException:
                self._free()
                raise
            self.n_ctx = self._contexts[0].n_ctx
            self._context_of = {slot: context for context in self._contexts for slot in context.slots}
            self._places = Places(self._context_of, waiting, self._rank)
            llm._dependents.add(self)
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"tinylora-pool-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def encode(self, prompt: Prompt, *, raw: bool) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return the tokens of a prompt, and the stop texts of the model's chat format; see `Scheduler`."""
        self._process.check()
        try:
            with self._llm._staying():
                check_length(prompt, self.n_ctx, self._vocabulary)
                tokens, stops = encode_with_stops(self._llm, prompt, raw=raw)
        except VectorError as error:  # a model without a template, or messages that it does not render
            raise RequestError(str(error), param="messages") from None
        except UnicodeEncodeError as error:
            raise RequestError(f"the text is none: {error}", param="prompt" if raw else "messages") from None
        return tuple(tokens.tolist()), tuple(stops)

    def submit(self, request: Request, report: Report) -> Answering:
        """Let a request wait for its turn, and be answered; see `Scheduler`."""
        self._process.check()
        check_prompt(request, self.n_ctx)
        if request.vector is not None:
            self._llm.basis.values(request.vector)
        grammar, schema = None, request.sampling.schema
        if schema is not None:
            with self._llm._staying():  # the vocabulary is the model's
                grammar = self._grammars.of(schema)
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

    def scorer(self) -> Batch:
        """Return what scores answers, in a context of its own; see `Scheduler`."""
        return Batch(self._llm, n_ctx_seq=self.n_ctx, sequences=2)  # type: ignore[arg-type]

    def close(self) -> None:
        """End what is being answered with a `TinyLoraError`, and free everything but the model."""
        if self._process.forked:  # nothing of the engine may be touched there
            return
        self._places.close()
        with self._closing:  # whoever comes second waits: the model may be freed afterwards
            for thread in self._threads:
                thread.join()
            self._places.end()
            self._free()

    def _free(self) -> None:
        while self._contexts:
            self._contexts.pop().free()
        self._vectors.free()

    def _rank(self, slot: Slot) -> tuple[int, ...]:
        """Return what is least for the slot of the idlest context that is unused longest."""
        busy = sum(each in self._places.running for each in self._context_of[slot].slots)
        return busy, slot.used

    def _work(self, number: int) -> None:
        """Answer in one context until the scheduler is closed."""
        context, before = self._contexts[number], -1
        while (found := self._next(context, before)) is not None:
            slot, answering = found
            before = slot.number
            end: Finish | BaseException | None
            try:
                self._go_on(number, context, slot, answering)
                end = answering.end
            except BaseException as error:
                end = error
            if end is None and not answering.cancelled:
                continue
            self._places.leave(slot, answering, end)

    def _next(self, context: Context, before: int) -> tuple[Slot, Answering] | None:
        """Return the slot whose turn it is, after the one before; None once the scheduler is closed."""
        with self._places.changed:
            while not self._places.closed:
                count = len(context.slots)
                order = [context.slots[(before + 1 + i) % count] for i in range(count)]
                if (slot := next((s for s in order if s in self._places.running), None)) is not None:
                    return slot, self._places.running[slot]
                self._places.changed.wait()
            return None

    def _go_on(self, number: int, context: Context, slot: Slot, answering: Answering) -> None:
        """Go on with an answer for a slice, unless nobody wants it any more."""
        if answering.cancelled:
            return
        if not answering.begun:
            shared = slot.shared(slot.user, slot.vector, answering.tokens)
            answering.cached, answering.begun = context.cut(slot, shared), True
        self._vectors.apply(number, slot.vector, self._needed)
        for _ in range(_SLICE):
            if self._places.closed or answering.cancelled:  # of the first, `close` says so
                return
            many = len(answering.tokens) - len(slot.tokens) > 1
            self._step(context, slot, answering)
            if answering.end is not None or many:  # a chunk of a prompt is a slice of its own
                return

    def _needed(self) -> set[MicroVector]:
        with self._places.changed:
            return {slot.vector for slot in self._places.running if slot.vector is not None}

    def _step(self, context: Context, slot: Slot, answering: Answering) -> None:
        """Evaluate what is not evaluated yet, a chunk at most, and draw the next token."""
        begin = len(slot.tokens)
        chunk = answering.tokens[begin : begin + CHUNK]
        last = begin + len(chunk) == len(answering.tokens)
        try:
            with self._llm.turns.computing():
                logits = context.evaluate(slot, chunk, last=last)
        except VectorError:  # nobody's cells are there any more
            with self._places.changed:
                for each in context.slots:
                    each.cut(0)
            raise
        if logits is None:
            return
        answering.go_on(logits)
