"""A request as it is answered: its tokens so far, how the next one is drawn, and what was told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError, VectorError
from ...tasks import Prompt
from .request import Finish, Piece, Request, Token
from .sampling import Constraint, Sampler, logprobs
from .scheduler import Report
from .text import Text

_USUAL = 4
"""Bytes of a token, about. A prompt of no more than that for each token of the context is not looked at."""


class Vocabulary(Protocol):
    """The tokens of a model, as answers need them."""

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""

    def data(self, token: int) -> bytes:
        """Return the bytes of a token in UTF-8; none of a special one."""

    @property
    def longest(self) -> int:
        """Bytes of the longest token."""

    def speaker(self) -> Callable[[int], bytes]:
        """Return what gives the bytes that each further token of a sequence adds to its text."""


class Answering:
    """A request that waits or is being answered: the ticket of whoever submitted it.

    Args:
        request: what is asked.
        report: called with pieces of the answer, and its end.
        vocabulary: of the model.
        n_ctx: tokens of the longest sequence.
        withdraw: called when the request is given up, so that it waits no longer.
        constraint: what the answer keeps to.

    Attributes:
        request: what is asked.
        tokens: token ids of the prompt, and of the answer so far.
        cached: tokens of the prompt that were not evaluated again.
        begun: whether it has a place, and what that held for others is gone.
        cancelled: see `Ticket`.
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
        constraint: Constraint | None = None,
    ) -> None:
        sampling = request.sampling
        self.request = request
        self.tokens = list(request.prompt)
        self.cached = 0
        self.begun = self.cancelled = False
        self.end: Finish | None = None
        self._sampler = Sampler(sampling, request.choice)
        self._text = Text(sampling.stop)
        self._most = min(len(self.tokens) + (sampling.max_tokens or n_ctx), n_ctx)
        self._constraint, self._vocabulary, self._speak = constraint, vocabulary, vocabulary.speaker()
        self._withdraw, self._report = withdraw, report

    def report(self, what: Piece | Finish | BaseException) -> None:
        """Report a piece or the end, unless nobody wants it any more."""
        if not self.cancelled and (not isinstance(what, Piece) or what.text or what.tokens):
            self._report(what)

    def go_on(self, logits: NDArray[np.float32]) -> None:
        """Draw the next token and report it. `end` is there where the answer ended with it.

        Args:
            logits: float32 [vocabulary], finite.
        """
        token = self._sampler.draw(logits, self._constraint)
        if token is None or self._vocabulary.ends(token):
            self._finish(stopped=True, by=token)
            return
        if self._constraint is not None:
            self._constraint.accept(token)
        self.tokens.append(token)
        self.report(self._text.add(self._speak(token), self._described(logits, token)))
        if self._text.stopped or len(self.tokens) >= self._most:
            self._finish(stopped=self._text.stopped)

    def cancel(self) -> None:
        """Give the request up; see `Ticket`."""
        self.cancelled = True
        self._withdraw(self)

    def _finish(self, *, stopped: bool, by: int | None = None) -> None:
        """Report what was held back; the end itself is reported once the place is free.

        Args:
            stopped: it ended before its longest.
            by: the token that ends answers, where one did.
        """
        self.report(self._text.rest())
        prompt = len(self.request.prompt)
        said = tuple(self.tokens[prompt:])
        all_of_it = said if by is None else (*said, by)
        self.end = Finish("stop" if stopped else "length", prompt, self.cached, len(said), all_of_it)

    def _described(self, logits: NDArray[np.float32], token: int) -> Token | None:
        count = self.request.sampling.logprobs
        if count is None:
            return None
        own, likeliest = logprobs(logits, token, count)
        data = self._vocabulary.data
        return Token(data(token), own, tuple((data(each), p) for each, p in likeliest))


def check_length(prompt: Prompt, n_ctx: int, vocabulary: Vocabulary) -> None:
    """Check that a prompt may fit before its tokens are counted, which may take half a minute for a megabyte.

    Args:
        prompt: text, or chat messages.
        n_ctx: tokens of the context.
        vocabulary: of the model. Its longest token is asked for where a prompt is long.

    Raises:
        RequestError: it has more bytes than so many tokens.
    """
    texts = [prompt] if isinstance(prompt, str) else [str(each.get("content") or "") for each in prompt]
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if size > _USUAL * n_ctx and size > (most := n_ctx * vocabulary.longest):
        raise _too_long(f"{size:,} bytes", f"{n_ctx} tokens, of {most:,} bytes at most,")


def check_prompt(request: Request, n_ctx: int) -> None:
    """Check that a prompt can be answered.

    Raises:
        RequestError: it is empty, or fills the context.
    """
    if not request.prompt:
        raise RequestError("the prompt is empty: it needs one token at least", param="prompt")
    if len(request.prompt) >= n_ctx:
        raise _too_long(f"{len(request.prompt)} tokens", str(n_ctx))


def _too_long(size: str, room: str) -> RequestError:
    return RequestError(
        f"the prompt has {size}, and the context {room} for prompt and answer: shorten it, or serve with a "
        "larger n_ctx",
        param="messages",
        code="context_length_exceeded",
    )


def too_large() -> VectorError:
    """Return the error of an answer whose logits are not finite."""
    return VectorError(
        "the vector is too large for the model: its logits are not finite. Use a smaller one; a "
        "policy bounds them (max_norm)"
    )
