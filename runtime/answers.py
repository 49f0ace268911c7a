"""What a pool is asked, and the answer: how it is drawn, its text as it comes in, and its end."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict

from ..errors import OptionError, RequestError
from ..tasks.tools import CALL, CALL_BEGIN, CALL_END
from ..vector import MicroVector
from .tools import ToolCall, Tools
from .turns import Who

STOPS = 16
"""Stop texts of a request. OpenAI's interface has 4."""

STOP_CHARACTERS = 1 << 10
"""Characters of a stop text: every piece of an answer is searched for them."""

LOGPROBS = 20
"""Likeliest tokens that are told beside each token: OpenAI's own limit."""

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
"""Why an answer ended: by itself or at a stop text, at its longest, or by itself behind calls."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_tokens: of the answer; None until the context is full.
        temperature: of the distribution; 0 takes the likeliest token each time.
        top_p: share of the probability that the likeliest tokens have which are drawn from.
        seed: of the random numbers; None for others each time.
        stop: texts that end the answer and are no part of it.
        logprobs: how many of the likeliest tokens are told beside each token; 0 tells its own
            log-probability alone, None nothing.
        schema: a JSON schema that the answer keeps to; an empty one is any JSON object.
        tools: that the answer may call; a call asks for them as OpenAI's options `tools`, `tool_choice` and
            `parallel_tool_calls`.

    Raises:
        RequestError: a number is out of its range, or a stop text is too long.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    schema: Mapping[str, Any] | None = None
    tools: Tools | None = None

    def __post_init__(self) -> None:
        _check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more")
        fine = math.isfinite(self.temperature) and self.temperature >= 0
        _check(fine, "temperature", self.temperature, "0 or more")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(self.seed is None or 0 <= self.seed < 1 << 64, "seed", self.seed, "from 0 to 2**64 - 1")
        few = self.logprobs is None or 0 <= self.logprobs <= LOGPROBS
        _check(few, "logprobs", self.logprobs, f"from 0 to {LOGPROBS}")
        if self.tools is not None and self.schema is not None:
            message = "an answer keeps to a schema or calls tools: ask for one"
            raise RequestError(message, param="response_format")
        for text in self.stop:
            if not 0 < len(text) <= STOP_CHARACTERS:
                raise RequestError(
                    f"a stop text has 1 to {STOP_CHARACTERS} characters, not {len(text)}", param="stop"
                )


class SamplingOptions(TypedDict, total=False):
    """The options of a call that asks for an answer, by the names that `Sampling` has."""

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int | None
    schema: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool


def sampling_of(options: SamplingOptions, stops: Sequence[str] = ()) -> Sampling:
    """Return what the options of a call ask for.

    Args:
        options: of the call.
        stops: texts at which the model's chat format ends an answer; they do not count.

    Raises:
        OptionError: there is no such option.
        RequestError: as for `Sampling`, or there are too many stop texts.
    """
    known = SamplingOptions.__annotations__
    for name in options:
        if name not in known:
            raise OptionError(f"a pool has no option {name!r}: there are {', '.join(known)}")
    given: dict[str, Any] = dict(options)
    own = given.pop("stop", None) or ()
    own = (own,) if isinstance(own, str) else tuple(own)
    _check(len(own) <= STOPS, "stop", f"{len(own)} texts", f"at most {STOPS}")
    tools = Tools.read(
        given.pop("tools", None), given.pop("tool_choice", None), given.pop("parallel_tool_calls", True)
    )
    return Sampling(**given, stop=(*own, *(each for each in stops if each not in own)), tools=tools)


@dataclass(frozen=True)
class Request:
    """A prompt that is to be answered.

    Attributes:
        prompt: token ids.
        tenant: whose request it is: what was evaluated for one is found by them alone. Empty for nobody in
            particular, for whom nothing is kept.
        account: of the tenant, if it belongs to one: see `Shares`.
        user: whose vector and answer it is, where a tenant has many users.
        vector: that answers; None for the base alone.
        sampling: how.
        choice: the number of this answer, where one prompt has several: each draws numbers of its own.
    """

    prompt: tuple[int, ...]
    tenant: str = ""
    account: str | None = None
    user: str = ""
    vector: MicroVector | None = None
    sampling: Sampling = field(default_factory=Sampling)
    choice: int = 0

    @property
    def who(self) -> Who:
        """Whose places and turns it takes."""
        return Who(self.tenant if self.account is None else self.account, self.tenant)


@dataclass(frozen=True)
class Token:
    """A token of an answer, where its probability was asked for.

    Attributes:
        data: its bytes in UTF-8, maybe a part of a character; empty for a special token.
        logprob: its log-probability (natural) under softmax(logits), before temperature and top_p.
        likeliest: the likeliest tokens in its place, likeliest first: bytes and log-probability.
    """

    data: bytes
    logprob: float
    likeliest: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next part of an answer: text, tokens where their probabilities were asked for, whole calls."""

    text: str
    tokens: tuple[Token, ...] = ()
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Finish:
    """The end of an answer.

    Attributes:
        reason: why it ended.
        prompt_tokens: tokens of the prompt.
        cached_tokens: how many of them were not evaluated again, because the user's last request had them.
        completion_tokens: tokens that were generated, without the one that ends an answer by itself.
        tokens: their ids, and that one's.
    """

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Answer:
    """A whole answer: text, end, tokens where they were asked for, the vector (None: the base), calls."""

    text: str
    finish: Finish
    tokens: tuple[Token, ...] = ()
    vector: MicroVector | None = None
    calls: tuple[ToolCall, ...] = ()


Report: TypeAlias = Callable[[Piece | Finish | BaseException], None]
"""What is called, from a scheduler's thread, with each piece of an answer and at last with its end.

The end is a `Finish`, or the error that the answer failed with. The call returns at once and raises nothing.
"""


class Text:
    """The text of an answer as its tokens come in: whole characters, up to the first of some stop texts.

    What may be the beginning of a stop text is held back until it goes on differently; `stopped` says whether
    one came. Where the answer may call tools, so is each call until it is whole; `calls` counts them.
    """

    def __init__(self, stop: Sequence[str] = (), tools: Tools | None = None) -> None:
        self.stopped, self.calls = False, 0
        self._stop, self._held = stop, ""
        self._call_begin = CALL_BEGIN if tools is not None else ""
        self._calling = tools is not None and tools.forced
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._tokens: list[Token] = []

    def add(self, data: bytes, token: Token | None = None) -> Piece:
        """Append the bytes of a token; return what may be shown now, which may be nothing."""
        if token is not None:
            self._tokens.append(token)
        self._held += self._decoder.decode(data)
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held, self._tokens = self._held[: min(found)], []
            return self.rest()
        return self._show(len(self._held) - max(map(self._begun, (*self._stop, self._call_begin))))

    def rest(self) -> Piece:
        """Return what was held back, at the end; a call that is not whole is none."""
        self._held += self._decoder.decode(b"", final=True)
        piece = self._show(len(self._held))
        self._held = ""
        return piece

    def _show(self, count: int) -> Piece:
        """Return the next characters, or calls; tokens come once nothing of them is held back."""
        if self._call_begin and not self._calling and (at := self._held.find(self._call_begin)) >= 0:
            self._calling, count = True, at
        elif self._calling:
            count = 0
        shown, self._held = self._held[:count], self._held[count:]
        calls = []
        while CALL_END in self._held and (call := CALL.match(self._held)):
            calls.append(ToolCall(self.calls, *call.groups()))
            self._held = self._held[call.end() :]
            self.calls += 1
        if self._held:
            return Piece(shown, calls=tuple(calls))
        tokens, self._tokens = tuple(self._tokens), []
        return Piece(shown, tokens, tuple(calls))

    def _begun(self, stop: str) -> int:
        """Length of the longest beginning of a stop text that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def _check(fine: bool, name: str, value: object, expected: str) -> None:
    if not fine:
        raise RequestError(f"{name} is {value}: it must be {expected}", param=name)
