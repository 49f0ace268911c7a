"""`Pool`: a model that many users share at the same time, each with their own vector."""

from __future__ import annotations

import asyncio
import logging
import re
from asyncio import wrap_future
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, Self
from weakref import ref

import numpy as np

from tinylora_edge.errors import OptionError, RequestError, TinyLoraError, VectorError
from tinylora_edge.formats.bundle import Bundle, BundleOrPath
from tinylora_edge.process import cores
from tinylora_edge.tasks import Prompt, Sample
from tinylora_edge.vector import AdmittedVector, Policy

from .answers import (
    Answer,
    Finish,
    Piece,
    Report,
    Request,
    Token,
    answering,
    grammar_for,
    sampling_of,
    too_long,
)
from .compiling import Left
from .engine import Engine, is_exact
from .load import load
from .loop import Busy, Generating, Loop
from .model import PersonalizedModel, VectorSource, admitted
from .schema import ToolCall
from .turns import Threads, Who

_LOG = logging.getLogger("tinylora_edge.runtime")

_PROBED, _PROBED_ROWS = 256, 64  # tokens of the rows on which kernels are tried, and most of these rows
_OWN_CONTEXT = 256  # tokens of the model's own context, which a pool does not use
_CLOSED = "the pool is closed: it was, or its model was. Make another one"

_SLOTS = 16
"""Rows by default: each more of them slows everybody's tokens."""

_BYTES = 32
"""Most bytes of a prompt for each token of the context; texts have about 4."""

_UNBROKEN = 1 << 10
"""Most characters of one kind in a row, such as letters: tokenizers take them as one word, in quadratic
time."""

_RUN = re.compile(r"\w+|\s+|[^\w\s]+")

# Threads of their own for what may wait, so that a request waits only for what it needs itself.
_PREPARING = 2  # threads that make tokens; an account has at most one of them
_COMPILING = 2  # threads that make grammars, likewise
_ADMITTING = 4  # threads that check vectors, whose policy may wait for a file


class Pool:
    """A model that answers many requests of one program at once, each with its own vector.

        pool = runtime.Pool("bundle", policy=Policy(keys=[...]))
        answer = await pool.chat(messages, user="alice", vector=frame, max_tokens=64)
        async for piece in pool.stream(messages, user="bob", vector=other_frame):
            print(piece.text, end="")

    All rows generate in one batch. An answer is the one that the same request gets alone, to the bit, where
    `exact` says so.

    Args:
        base: as for `load`, or a model that `load` returned, which stays the caller's: it keeps its context
            and its vector, and its `close` closes the pool.
        policy: what is demanded of vector bytes, at every request; a loaded model has its own.
        slots: the rows of the batch, each of which remembers a user's last prompt; no account may have all of
            them: see `Shares`. llama.cpp has memory for so many sequences of n_ctx tokens from the start,
            ONNX Runtime for the tokens in use.
        n_ctx: tokens of the longest sequence, prompt and answer; in ONNX Runtime the model's own at most.
        waiting: how many requests may wait, shared likewise.
        n_threads: cores to use; by default all that this process may use. A loaded ONNX model keeps its own.
        engine_options: as for `load`, where `base` is a path.

    Attributes:
        model: the loaded model, whose weights it uses.
        bases: those that vectors may be of.
        policy: what is demanded of vector bytes.
        n_ctx: tokens of the longest sequence.
        exact: whether an answer is the same to the bit, whoever else is there. Some processors' kernels
            (AMX) compute a row in another way beside others; the pool tries it when it is made.

    Raises:
        TinyLoraError: the engine cannot make the contexts.
        RequestError: a number is below 1.
        OptionError: `vector_bytes`, or options for a loaded model.
        Those of `load`.
    """

    def __init__(
        self,
        base: BundleOrPath | PersonalizedModel,
        *,
        policy: Policy | None = None,
        slots: int = _SLOTS,
        n_ctx: int = 2048,
        waiting: int = 1024,
        n_threads: int | None = None,
        **engine_options: Any,
    ) -> None:
        numbers = {"slots": slots, "n_ctx": n_ctx, "waiting": waiting}
        for name, value in {**numbers, "n_threads": n_threads}.items():
            if value is not None and value < 1:
                raise RequestError(f"a pool with {name}={value} answers nobody: pass 1 or more", param=name)
        if "vector_bytes" in engine_options:
            raise OptionError(
                "a pool takes no vector_bytes, as every request has a vector of its own: pass vector=... to "
                "chat, complete or stream"
            )
        self._owned: PersonalizedModel | None = None
        if isinstance(base, str | PathLike | Bundle):
            engine_options["n_threads"] = n_threads or cores()
            llm = load(base, policy=policy, n_ctx=_OWN_CONTEXT, **engine_options)
            self._owned = llm
        elif policy is not None or engine_options:
            names = ", ".join([*(["policy"] if policy else []), *engine_options])
            raise OptionError(f"a pool over a loaded model takes no {names}: pass it to `load`")
        else:
            llm = base
        self.model, self.bases, self.policy = llm, llm.bases, llm.policy
        try:
            engine, self.exact = _exact_engine(llm, rows=slots, n_ctx=n_ctx, n_threads=n_threads or cores())
        except BaseException:
            if self._owned is not None:
                self._owned.close()
            raise
        self._loop = Loop(engine, closed=_CLOSED, waiting=waiting)
        self.n_ctx = self._loop.n_ctx
        self._preparing = Threads(_PREPARING, waiting, "tinylora-prompts", _CLOSED)
        self._compiling = Threads(_COMPILING, waiting, "tinylora-grammars", _CLOSED)
        self._admitting = Threads(_ADMITTING, waiting, "tinylora-admission", _CLOSED)
        self._ends = (self._preparing, self._compiling, self._admitting, self._loop)
        llm.close_with(self, *self._ends)

    async def chat(self, messages: Prompt, **options: Any) -> Answer:
        """Answer chat messages.

        Args:
            messages: the chat so far, or text: one message of the user.
            user: name of the user whose request and vector it is (see `Policy`).
            tenant: who may reuse in a later request what this one evaluates: by default the user. For ""
                nothing is kept.
            account: whose tenants share places and turns, such as one app's; by default each has its own.
            vector: bytes that the policy checks, the `pathlib.Path` of a file with them, a `MicroVector` of
                the app's own, or a list of these, a stack; None for the base alone.
            options: those of `Sampling`.

        Raises:
            VectorError: the vector was refused; the subclass says why.
            RequestError: the prompt does not fit, or an option is out of its range.
            OverloadError: too many requests wait.
            OSError: the vector's file or the policy's state cannot be read or written.
            TinyLoraError: the pool is closed.
        """
        return await self.stream(messages, **options).answer()

    async def complete(self, prompt: str, **options: Any) -> Answer:
        """Continue a text, without the chat template. Arguments and errors: see `chat`."""
        return await self.stream(prompt, raw=True, **options).answer()

    def stream(self, prompt: Prompt, **options: Any) -> AnswerStream:
        """Return an answer piece by piece. Arguments and errors: see `streams`; its first step checks it."""
        (only,) = self._streams(prompt, 1, **options)
        return only

    async def streams(self, prompt: Prompt, n: int, **options: Any) -> list[AnswerStream]:
        """Start n answers to one prompt, each with its own random numbers; return them as streams of pieces.

        Args:
            prompt: chat messages, or text.
            n: how many, 1 or more.
            raw: the text goes past the chat template.
            options: as for `chat`.

        Raises:
            OptionError: there is no such option.
            Those of `chat`.
        """
        streams = self._streams(prompt, n, **options)
        await streams[0]._begin(streams)
        return streams

    def _streams(
        self,
        prompt: Prompt,
        n: int,
        *,
        raw: bool = False,
        user: str = "",
        tenant: str | None = None,
        account: str | None = None,
        vector: VectorSource | None = None,
        **options: Any,
    ) -> list[AnswerStream]:
        sampling = sampling_of(options)
        tenant = user if tenant is None else tenant
        who = Who(tenant if account is None else account, tenant)

        def prepare() -> Request:
            functions = () if sampling.tools is None else sampling.tools.functions
            tokens, stops = self._encode(prompt, raw=raw, tools=functions)
            return Request(tokens, who, user, sampling=sampling_of(options, stops))

        return [AnswerStream(self, who, prepare, vector) for _ in range(n)]

    def _compile(self, request: Request, left: Callable[[], bool]) -> Request:
        """Return a request with its grammar; errors are those of `grammar_for`."""
        tokenizer, compiling = self.model.chat_tokenizer, self._compiling
        try:
            with self.model.in_use():
                grammar = grammar_for(request.sampling, tokenizer, lambda: compiling.closed or left())
        except Left:
            if compiling.closed:
                raise TinyLoraError(_CLOSED) from None
            raise
        return replace(request, grammar=grammar)

    def _encode(
        self, prompt: Prompt, *, raw: bool, tools: tuple[dict[str, Any], ...]
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return the tokens of a prompt, with the tools that it tells of, and its chat format's stop texts.

        RequestError: the model's chat template does not render the messages, or there is no template.
        """
        if raw and tools:
            raise RequestError("a raw text cannot describe tools: send chat messages", param="tools")
        self._check_length(prompt, tools)
        try:
            tokens, stops = self.model.encode(replace(Sample.of(prompt, raw=raw), tools=tools))
        except VectorError as error:  # a model without a template, or messages that it does not render
            raise RequestError(str(error), param="messages") from None
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text is not valid Unicode: {error}", param="prompt" if raw else "messages"
            ) from None
        return tuple(tokens), tuple(stops)

    def _check_length(self, prompt: Prompt, tools: Sequence[dict[str, Any]]) -> None:
        """Refuse what cannot fit before it is rendered: to render a megabyte takes half a minute."""
        if not isinstance(prompt, str) and len(prompt) >= self.n_ctx:  # each has a token at least
            raise too_long(f"{len(prompt):,} messages", f"{self.n_ctx} tokens")
        messages = [{"content": prompt}] if isinstance(prompt, str) else prompt
        parts = [each.get(key) or "" for each in messages for key in ("content", "tool_calls")]
        texts = [*map(str, [*parts, *tools])]
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if size > (most := _BYTES * self.n_ctx):
            raise too_long(f"{size:,} bytes", f"{self.n_ctx} tokens, of {most:,} bytes at most,")
        longest = max((len(run[0]) for text in texts for run in _RUN.finditer(text)), default=0)
        if longest > _UNBROKEN:
            raise RequestError(
                f"the prompt has a word of {longest:,} characters, and at most {_UNBROKEN:,} are "
                "tokenized at once: break it with spaces",
                param="messages",
            )

    def busy(self) -> Busy:
        """Return how busy the pool is."""
        return self._loop.busy()

    def close(self) -> None:
        """End running answers with a `TinyLoraError`, and free all memory. A second call does nothing.

        It waits for the engine's current step.
        """
        for each in self._ends:
            each.close()
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)


def _exact_engine(llm: PersonalizedModel, *, rows: int, n_ctx: int, n_threads: int) -> tuple[Engine, bool]:
    """Return rows over a model's weights, and whether an answer has the same bits whoever is in the others.

    Kernels differ in whether they compute a single row as they do beside others. Where they do not, there is
    an idle row, for one slot too, so that the number of slots changes no answer either.
    """
    modules, shape = len(llm.bases.factors.modules), llm.bases.factors.shape
    r = 0.1 * np.random.default_rng(0).standard_normal((modules, *shape), np.float32)
    probed = min(max(rows, 2), _PROBED_ROWS)
    for fewest in (1, 2):
        engine = llm.engine(rows=probed, n_ctx=_PROBED, n_threads=n_threads, fewest=fewest)
        try:
            # OpenMP's threads stay with the thread that evaluates, and with more threads than cores none
            # spins. So it is a thread that ends.
            with ThreadPoolExecutor(1) as thread:
                exact = thread.submit(is_exact, engine, r).result()
        finally:
            engine.close()
        if exact:
            break
    else:
        _LOG.warning(
            "this processor computes a row in another way beside others: an answer may depend on who else is "
            "there, except with one slot"
        )
        fewest = 1
    return llm.engine(rows=rows, n_ctx=n_ctx, n_threads=n_threads, fewest=fewest), exact or rows == 1


class AnswerStream(AsyncIterator[Piece]):
    """An answer piece by piece: `async for piece in stream`.

    To leave it early, by a `break`, a cancelled task or `close`, frees its place.

    Attributes:
        finish: how it ended; None before that.
        vector: the one that it is answered under, once it has begun; None for the base.
        request: the request, once it has begun: token ids of the prompt, user, sampling.
    """

    def __init__(
        self, pool: Pool, who: Who, prepare: Callable[[], Request], source: VectorSource | None
    ) -> None:
        self.finish: Finish | None = None
        self.vector: AdmittedVector | None = None
        self.request: Request | None = None
        self._pool, self._who, self._prepare, self._source = pool, who, prepare, source
        self._begun = self._left = False
        self._work: Generating | None = None
        self._arrived: asyncio.Queue[Piece | Finish | BaseException] = asyncio.Queue()

    async def start(self) -> None:
        """Check the request and let it wait for its turn; without this call the first step does it. Errors:
        those of `Pool.chat`."""
        await self._begin([self])

    async def _begin(self, streams: Sequence[AnswerStream]) -> None:
        """Begin streams of one prompt, of which this is the first."""
        if self._begun or self._left:
            return
        for stream in streams:
            stream._begun = True
        pool, who = self._pool, self._who

        def left() -> bool:
            return all(stream._left for stream in streams)

        try:
            request = await wrap_future(pool._preparing.submit(who, self._prepare))
            if request.sampling.schema is not None or request.sampling.tools is not None:
                compiling = partial(pool._compile, request, left)
                request = await wrap_future(pool._compiling.submit(who, compiling))
            submit = partial(self._submit, request, streams, asyncio.get_running_loop())
            threads = pool._preparing if self._source is None else pool._admitting
            await wrap_future(threads.submit(who, submit))
        except Left:  # all streams were closed meanwhile
            return
        except BaseException:
            for stream in streams:
                stream.close()
            raise

    def _submit(
        self, request: Request, streams: Sequence[AnswerStream], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Admit the vector of a request, and let its answers wait for their turns."""
        pool, source, works = self._pool, self._source, list[Generating]()
        checked: AbstractContextManager[AdmittedVector | None] = nullcontext()
        if source is not None:
            checked = admitted(source, pool.bases, pool.policy, user=request.user)
        with checked as vector, pool.model.in_use():
            for choice, stream in enumerate(streams):
                grammar = request.grammar and (request.grammar.copy() if choice else request.grammar)
                stream.request = replace(request, vector=vector, choice=choice, grammar=grammar)
                stream.vector = vector
                report = stream._reporting(loop)
                work = answering(stream.request, pool.model.chat_tokenizer, pool.n_ctx, report)
                stream._work = work  # before the next line: a `close` meanwhile finds it, or was seen
                if not stream._left:
                    works.append(work)
            pool._loop.submit(*works)

    def _reporting(self, loop: asyncio.AbstractEventLoop) -> Report:
        """Return the function that a loop's thread reports to. It does not keep the stream alive."""
        arrived, this = self._arrived, ref(self)

        def report(what: Piece | Finish | BaseException) -> None:
            try:
                loop.call_soon_threadsafe(arrived.put_nowait, what)
            except RuntimeError:  # the event loop is closed: nobody reads the answer any more
                if (stream := this()) is not None:
                    stream._leave()

        return report

    async def __anext__(self) -> Piece:
        await self.start()
        if self.finish is not None or self._left:
            raise StopAsyncIteration
        try:
            what = await self._arrived.get()
        except BaseException:
            self.close()
            raise
        if isinstance(what, Piece):
            return what
        if isinstance(what, Finish):
            self.finish = what
            raise StopAsyncIteration
        self._left = True
        raise what

    async def answer(self) -> Answer:
        """Return the whole answer, or what is left of it to read. Errors: those of `start`."""
        text: list[str] = []
        tokens: list[Token] = []
        calls: list[ToolCall] = []
        async for piece in self:
            text.append(piece.text)
            tokens.extend(piece.tokens)
            calls.extend(piece.calls)
        finish = self.finish or Finish("stop", 0, 0, 0)  # it was closed meanwhile
        return Answer("".join(text), finish, tuple(tokens), self.vector, tuple(calls))

    def close(self) -> None:
        """Give the rest up. Again, or after its end, is fine."""
        self._left = True
        self._arrived.put_nowait(StopAsyncIteration())  # another task may wait for a piece
        if self._work is not None and self.finish is None:
            self._pool._loop.cancel(self._work)

    def _leave(self) -> None:
        self._left = True
        if self._work is not None:
            self._work.cancelled = True

    def __del__(self) -> None:
        self._leave()
