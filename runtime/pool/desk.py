"""The desk of a pool: it checks a request's vector, makes tokens of its prompt, and hands out the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import Self, Unpack
from weakref import ref

from ...basis import Basis
from ...tasks import Prompt
from ...vector import MicroVector, Policy
from ..admission import VectorSource, admitted
from .request import Answer, Finish, Piece, Request, SamplingOptions, Token, sampling_of
from .scheduler import Load, Report, Scheduler, Ticket


class AnswerStream:
    """An answer piece by piece: `async for piece in stream`.

    Whoever leaves it early, by a `break`, a cancelled task or `close`, frees what it holds.

    Attributes:
        finish: how it ended, once it has; None before.
        vector: that answers, once it has begun; None for the base.
        request: what was asked, once it has begun: token ids of the prompt, user, sampling.
    """

    def __init__(self, begin: Callable[[Report], tuple[Ticket, Request]]) -> None:
        self.finish: Finish | None = None
        self.vector: MicroVector | None = None
        self.request: Request | None = None
        self._begin = begin
        self._begun = False
        self._left = False
        self._ticket: Ticket | None = None
        self._arrived: asyncio.Queue[Piece | Finish | BaseException] = asyncio.Queue()

    async def start(self) -> None:
        """Check the request and let it wait for its turn; the first step does it otherwise.

        Raises:
            VectorError: the vector was refused; the subclass says why.
            RequestError: the prompt does not fit, or an option is out of its range.
            OverloadError: too many requests wait.
            TinyLoraError: the pool is closed.
        """
        if self._begun:
            return
        self._begun = True
        loop, arrived, this = asyncio.get_running_loop(), self._arrived, ref(self)

        def report(what: Piece | Finish | BaseException) -> None:  # keeps no stream that its reader dropped
            try:
                loop.call_soon_threadsafe(arrived.put_nowait, what)
            except RuntimeError:  # the loop is closed, and with it whoever would read this
                if (stream := this()) is not None:
                    stream._leave()

        def begin() -> None:
            self._ticket, self.request = self._begin(report)
            self.vector = self.request.vector
            if self._left:
                self._ticket.cancel()

        try:
            await asyncio.to_thread(begin)
        except BaseException:
            self._left = True
            raise

    def __aiter__(self) -> Self:
        return self

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
        """Return the whole answer, of what was not read before. Errors: those of `start`."""
        text: list[str] = []
        tokens: list[Token] = []
        async for piece in self:
            text.append(piece.text)
            tokens.extend(piece.tokens)
        finish = self.finish or Finish("stop", 0, 0, 0)  # it was closed meanwhile
        return Answer("".join(text), finish, tuple(tokens), self.vector)

    def close(self) -> None:
        """Give the rest up. Again, or after its end, is fine."""
        self._left = True
        if self._ticket is not None and self.finish is None:
            self._ticket.cancel()

    def _leave(self) -> None:
        self._left = True
        if self._ticket is not None:
            self._ticket.cancelled = True

    def __del__(self) -> None:
        self._leave()


class Desk:
    """What takes requests in and hands answers out, for one scheduler.

    Args:
        scheduler: of an engine.
        basis: of the vectors.
        policy: what is demanded of vector bytes, at every request.
    """

    def __init__(self, scheduler: Scheduler, basis: Basis, policy: Policy) -> None:
        self.basis = basis
        self.policy = policy
        self._scheduler = scheduler

    @property
    def n_ctx(self) -> int:
        """Tokens of the longest sequence, prompt and answer."""
        return self._scheduler.n_ctx

    async def chat(
        self,
        messages: Prompt,
        *,
        user: str = "",
        vector: VectorSource | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Answer:
        """Answer chat messages.

        Args:
            messages: the chat so far, or text: one message of the user.
            user: whose request it is: users take turns, and his next request finds what this one evaluated.
                It is also the stream that vector bytes belong to (see `Policy`).
            vector: bytes that the policy checks, the `pathlib.Path` of a file with them, or a `MicroVector`
                of the app's own; None for the base alone.
            options: see `Sampling`.

        Raises:
            VectorError: the vector was refused; the subclass says why.
            RequestError: the prompt does not fit, or an option is out of its range.
            OverloadError: too many requests wait.
            OSError: the vector's file or the policy's state cannot be read or written.
            TinyLoraError: the pool is closed.
        """
        return await self.stream(messages, user=user, vector=vector, **options).answer()

    async def complete(
        self,
        prompt: str,
        *,
        user: str = "",
        vector: VectorSource | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Answer:
        """Continue a text, without the chat template. Arguments and errors: see `chat`."""
        return await self.stream(prompt, raw=True, user=user, vector=vector, **options).answer()

    def stream(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        user: str = "",
        vector: VectorSource | None = None,
        choice: int = 0,
        **options: Unpack[SamplingOptions],
    ) -> AnswerStream:
        """Return an answer piece by piece.

        Args:
            prompt: chat messages, or text.
            raw: the text goes past the chat template.
            user, vector, options: as for `chat`.
            choice: the number of this answer, where one prompt with one seed has several.

        Raises:
            OptionError: there is no such option.
            RequestError: an option is out of its range. All others come from the stream's first step.
        """
        sampling_of(options)

        def begin(report: Report) -> tuple[Ticket, Request]:
            admission = (
                nullcontext() if vector is None else admitted(vector, self.basis, self.policy, stream=user)
            )
            ticket: Ticket | None = None
            try:
                with admission as admitted_vector:
                    tokens, stops = self._scheduler.encode(prompt, raw=raw)
                    sampling = sampling_of(options, stops)
                    request = Request(tokens, user, admitted_vector, sampling, choice)
                    ticket = self._scheduler.submit(request, report)
            except BaseException:  # the policy could not remember the vector
                if ticket is not None:
                    ticket.cancel()
                raise
            return ticket, request

        return AnswerStream(begin)

    def load(self) -> Load:
        """Return how busy the pool is."""
        return self._scheduler.load()
