"""Requests and their answers: how one is drawn, its text as it comes in, its end, and its OpenAI shape."""

from __future__ import annotations

import codecs
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.errors import MissingExtraError, OptionError, RequestError
from tinylora_edge.tasks.sample import CALL, CALL_BEGIN, CALL_END, untagged
from tinylora_edge.vector import AdmittedVector

from .engine import Tokenizer
from .loop import NOBODY, FinishReason, Generating
from .sampling import Sampler, likeliest, logprobs
from .schema import Grammar, ToolCall, Tools, grammar_of
from .turns import Who

STOPS = 16
"""Stop texts of a request. OpenAI's interface has 4."""

STOP_CHARACTERS = 1 << 10
"""Most characters of a stop text: every piece of an answer is searched for each."""

LOGPROBS = 20
"""Most of the likeliest tokens that are reported beside each token: OpenAI's own limit."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_tokens: most tokens of the answer; None: until the context is full.
        temperature: 0 takes the likeliest token each time; above 1 draws more evenly.
        top_p: draw from the likeliest tokens alone whose probabilities sum to this.
        top_k, min_p: see `Sampler`.
        seed: of the random numbers; None draws differently each time.
        stop: texts that end the answer and are no part of it.
        logprobs: how many of the likeliest tokens come beside each token; 0: its own log-probability alone.
        schema: a JSON schema that the answer keeps to; an empty one is any JSON object.
        tools: functions that the answer may call; requests pass OpenAI's options `tools`, `tool_choice` and
            `parallel_tool_calls`.

    RequestError: a number is out of its range, or a stop text is too long.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
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
            message = "an answer keeps to a schema or calls tools: ask for one of the two"
            raise RequestError(message, param="response_format")
        for text in self.stop:
            if not 0 < len(text) <= STOP_CHARACTERS:
                raise RequestError(
                    f"a stop text has 1 to {STOP_CHARACTERS} characters, not {len(text)}", param="stop"
                )


def schema_of(response_format: Any) -> Mapping[str, Any] | None:
    """Return the schema that a `response_format` asks for, of OpenAI's or llama-cpp-python's form."""
    match response_format:
        case {"type": "text"}:
            return None
        case {"type": "json_object"} if isinstance(found := response_format.get("schema") or {}, dict):
            return found
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}} if schema:
            return schema
    raise RequestError(
        "response_format is none of {'type': 'text'}, {'type': 'json_object'} and "
        "{'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}",
        param="response_format",
    )


def sampling_of(options: Mapping[str, Any], stops: Sequence[str] = ()) -> Sampling:
    """Return the `Sampling` of a request's options: its fields by name, and OpenAI's options for tools.

    `stops` are the texts at which the model's chat format ends an answer; `STOPS` does not count them.
    OptionError: there is no such option. RequestError: as for `Sampling`, or there are too many stop texts.
    """
    known = [each.name for each in fields(Sampling)] + ["tool_choice", "parallel_tool_calls"]
    for name in options:
        if name not in known:
            raise OptionError(f"a pool has no option {name!r}: there are {', '.join(known)}")
    chosen: dict[str, Any] = dict(options)
    own = chosen.pop("stop", None) or ()
    own = (own,) if isinstance(own, str) else tuple(own)
    _check(len(own) <= STOPS, "stop", f"{len(own)} texts", f"at most {STOPS}")
    tools = Tools.read(
        chosen.pop("tools", None), chosen.pop("tool_choice", None), chosen.pop("parallel_tool_calls", True)
    )
    return Sampling(**chosen, stop=(*own, *(each for each in stops if each not in own)), tools=tools)


@dataclass(frozen=True)
class Request:
    """A prompt that is to be answered.

    Attributes:
        prompt: token ids.
        who: whose places and turns it takes: see `Work`.
        user: whose vector and answer it is, where a tenant has many users.
        vector: the one to answer under; None for the base alone.
        sampling: how the answer is drawn.
        choice: the number of this answer, where one prompt has several: each has its own random numbers.
        grammar: what the answer keeps to, of `grammar_for`; it moves on with the answer.
    """

    prompt: tuple[int, ...]
    who: Who = NOBODY
    user: str = ""
    vector: AdmittedVector | None = None
    sampling: Sampling = field(default_factory=Sampling)
    choice: int = 0
    grammar: Grammar | None = field(default=None, repr=False)


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
        cached_tokens: how many of them were not evaluated again, because an earlier request had them.
        completion_tokens: tokens that were generated, without the end token.
        tokens: ids of these, and of the end token where the answer has one.
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
    vector: AdmittedVector | None = None
    calls: tuple[ToolCall, ...] = ()


Report: TypeAlias = Callable[[Piece | Finish | BaseException], None]
"""Called from a loop's thread with each piece of an answer, and at last with its end.

The end is a `Finish`, or the error that the answer failed with. The call returns at once and raises nothing.
"""


class Text:
    """The text of an answer as its tokens come in: whole characters, up to the first of some stop texts.

    What may be the beginning of a stop text is held back until it goes on differently; `stopped` says whether
    a stop text came. Where the answer may call tools, each call is held back until it is whole; `calls`
    counts them.
    """

    def __init__(self, stop: Sequence[str] = (), tools: Tools | None = None) -> None:
        self.stopped, self.calls = False, 0
        self._stop, self._held = stop, ""
        self._call_begin = "" if tools is None else CALL_BEGIN
        self._calling = tools is not None and tools.forced
        self._opening, self._openings = (tools or Tools(())).openings()
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._tokens: list[Token] = []

    def add(self, data: bytes, token: Token | None = None) -> Piece:
        """Append the bytes of a token; return what is certain by now, which may be nothing."""
        if token is not None:
            self._tokens.append(token)
        self._held += self._decoder.decode(data)
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            cut = len(self._held[min(found) :].encode()) + self._partial()
            self._held = self._held[: min(found)]
            while self._tokens and (cut := cut - len(self._tokens[-1].data)) >= 0:
                self._tokens.pop()
            return self.rest()
        held = len(self._held) if self._opens() else max(map(self._begun, (*self._stop, self._call_begin)))
        return self._emit(len(self._held) - held)

    def rest(self) -> Piece:
        """Return what was held back, at the end; a call that is not whole is left out."""
        self._held += self._decoder.decode(b"", final=True)
        if self._calling and (call := untagged(self._held)):
            self._held, self.calls = "", 1
            return replace(self._emit(0), calls=(ToolCall(0, *call),))
        piece = self._emit(len(self._held))
        self._held = ""
        return piece

    def _emit(self, count: int) -> Piece:
        """Return the next `count` characters, and calls that are whole; tokens once none of their text is
        held back."""
        if self._call_begin and not self._calling and (at := self._held.find(self._call_begin)) >= 0:
            self._calling, count = True, at
        elif self._calling:
            count = 0
        text, self._held = self._held[:count], self._held[count:]
        calls = []
        while CALL_END in self._held and (call := CALL.match(self._held)):
            calls.append(ToolCall(self.calls, *call.groups()))
            self._held = self._held[call.end() :]
            self.calls += 1
        if self._held or self._partial():
            return Piece(text, calls=tuple(calls))
        tokens, self._tokens = tuple(self._tokens), []
        return Piece(text, tokens, tuple(calls))

    def _partial(self) -> int:
        """Return how many bytes have come of a character that is not whole yet."""
        return len(self._decoder.getstate()[0])

    def _opens(self) -> bool:
        """Whether the answer so far may become a call without tags."""
        if self._openings:
            text = "".join(self._held.split())
            self._openings = [each for each in self._openings if each.startswith(text)]
            self._calling = self._opening.match(self._held) is not None
        return bool(self._openings)

    def _begun(self, stop: str) -> int:
        """Length of the longest beginning of a stop text that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def answering(request: Request, tokenizer: Tokenizer, n_ctx: int, report: Report) -> Generating:
    """Return the work of a request, whose text, calls and end are reported; errors of `check_prompt`."""
    prompt, sampling, grammar = request.prompt, request.sampling, request.grammar
    check_prompt(prompt, n_ctx)
    sampler = Sampler(
        sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        number=request.choice,
    )
    text, data = Text(sampling.stop, sampling.tools), tokenizer.detokenizer()

    def send(piece: Piece) -> None:
        if piece.text or piece.tokens or piece.calls:
            report(piece)

    def heard(token: int, logits: NDArray[np.float32]) -> bool:
        if grammar is not None:
            grammar.accept(token)
        described = None
        if (count := sampling.logprobs) is not None:
            tokens = token, *likeliest(logits[None], count)[0].tolist()
            known = logprobs(logits[None], np.array([tokens], np.int32))[0].tolist()
            own, *others = zip(map(tokenizer.data, tokens), known, strict=True)
            described = Token(*own, tuple(others))
        send(text.add(data(token), described))
        return text.stopped

    def finished(work: Generating, error: BaseException | None) -> None:
        if error is not None:
            report(error)
            return
        send(text.rest())
        reason: FinishReason = "tool_calls" if work.reason == "stop" and text.calls else work.reason
        answer = work.answer
        report(Finish(reason, work.prompt, work.cached or 0, len(answer), (*answer, *work.by)))

    return Generating(
        tokens=list(prompt),
        most=min(len(prompt) + (sampling.max_tokens or n_ctx), n_ctx),
        draw=lambda logits: sampler(logits, grammar),
        ends=tokenizer.ends,
        heard=heard,
        finished=finished,
        vector=request.vector,
        who=request.who,
    )


def check_prompt(prompt: Sequence[int], n_ctx: int) -> None:
    """Raise a `RequestError` where a prompt is empty, or leaves no room for an answer."""
    if not prompt:
        raise RequestError("the prompt is empty: it needs at least one token", param="prompt")
    if len(prompt) >= n_ctx:
        raise too_long(f"{len(prompt)} tokens", str(n_ctx))


def too_long(size: str, room: str) -> RequestError:
    """Return the error of a prompt that leaves no room for an answer."""
    return RequestError(
        f"the prompt has {size}, and the context {room} for prompt and answer: shorten it, or take a "
        "larger n_ctx",
        param="messages",
        code="context_length_exceeded",
    )


def grammar_for(
    sampling: Sampling, tokenizer: Tokenizer, left: Callable[[], bool] = lambda: False
) -> Grammar | None:
    """Return the grammar of an answer, or None. RequestError: none can be made of the schema, or of one of
    the tools. Others are those of `grammar_of`."""
    try:
        if sampling.tools is not None:
            return sampling.tools.grammar(tokenizer, left)
        return None if sampling.schema is None else grammar_of(sampling.schema, tokenizer, left)
    except MissingExtraError as error:
        param = "response_format" if sampling.tools is None else "tools"
        raise RequestError(str(error), param=param, code="unsupported_parameter") from error


def _check(fine: bool, name: str, value: object, expected: str) -> None:
    if not fine:
        raise RequestError(f"{name} is {value}: it must be {expected}", param=name)


@dataclass(frozen=True)
class Reply:
    """The replies to one request, in OpenAI's shapes: whole, or in chunks."""

    model: str
    chat: bool
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    made: int = field(default_factory=lambda: int(time.time()))

    def encoded(self, answers: Sequence[Answer]) -> bytes:
        """Return the reply with whole answers as JSON.

        Each token is encoded by itself, so that other threads run in between: 16,000 tokens with 20 others
        each take seconds, and one call of `json.dumps` lets no other thread run.
        """
        mark = secrets.token_hex()
        first, *others = _json(self.whole(answers, tokens=mark)).split(f'"{mark}"')
        parts, described = [first], (answer.tokens for answer in answers if answer.tokens)
        for tokens, after in zip(described, others, strict=True):
            parts += ["[", ",".join(_json(self._token(token)) for token in tokens), "]", after]
        return b"".join(part.encode() for part in parts)

    def whole(self, answers: Sequence[Answer], *, tokens: str = "") -> dict[str, Any]:
        """Return the reply with whole answers; `tokens`, where given, stands for their descriptions."""
        choices = []
        for index, answer in enumerate(answers):
            choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish.reason}
            choice["logprobs"] = self._logprobs(answer.tokens, tokens)
            if self.chat:
                content = None if answer.calls and not answer.text else answer.text
                choice["message"] = {"role": "assistant", "content": content, "refusal": None}
                if answer.calls:
                    choice["message"]["tool_calls"] = [self._call(index, call) for call in answer.calls]
            else:
                choice["text"] = answer.text
            choices.append(choice)
        return {**self._head(), "choices": choices, "usage": usage([a.finish for a in answers])}

    def chunks(self, index: int, what: Piece | Finish) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a piece, or of the end of an answer: a call is its name, and its arguments."""
        calls = what.calls if isinstance(what, Piece) else ()
        if isinstance(what, Finish) or what.text or what.tokens:
            yield self.chunk(index, what, {"content": what.text} if isinstance(what, Piece) else {})
        for call in calls:
            made = self._call(index, call)
            made["function"]["arguments"] = ""
            for part in (made, {"function": {"arguments": call.arguments}}):
                yield self.chunk(index, None, {"tool_calls": [{"index": call.index, **part}]})

    def chunk(self, index: int, what: Piece | Finish | None, delta: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk: in a chat, what it adds to the message."""
        choice: dict[str, Any] = {
            "index": index,
            "finish_reason": what.reason if isinstance(what, Finish) else None,
            "logprobs": self._logprobs(what.tokens) if isinstance(what, Piece) else None,
        }
        if self.chat:
            choice["delta"] = delta
        else:
            choice["text"] = what.text if isinstance(what, Piece) else ""
        return {**self._head(".chunk"), "choices": [choice]}

    def _call(self, index: int, call: ToolCall) -> dict[str, Any]:
        """Return a call of an answer in OpenAI's shape."""
        return {
            "id": f"call_{self.name}_{index}_{call.index}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def cost(self, finishes: Sequence[Finish]) -> dict[str, Any]:
        """Return the chunk that says what all of it cost."""
        return {**self._head(".chunk"), "choices": [], "usage": usage(finishes)}

    def _head(self, part: str = "") -> dict[str, Any]:
        kind, prefix = (f"chat.completion{part}", "chatcmpl") if self.chat else ("text_completion", "cmpl")
        return {"id": f"{prefix}-{self.name}", "object": kind, "created": self.made, "model": self.model}

    def _logprobs(self, tokens: Sequence[Token], instead: str = "") -> dict[str, Any] | None:
        if not tokens:
            return None
        each = instead or [self._token(token) for token in tokens]
        if self.chat:
            return {"content": each, "refusal": None}
        return {
            "tokens": [_readable(token.data) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": each,
        }

    def _token(self, token: Token) -> dict[str, Any]:
        if self.chat:
            others = [_described(data, logprob) for data, logprob in token.likeliest]
            return {**_described(token.data, token.logprob), "top_logprobs": others}
        return {_readable(data): logprob for data, logprob in token.likeliest}


def usage(finishes: Sequence[Finish]) -> dict[str, Any]:
    """Return what answers to one prompt cost, in tokens."""
    prompt = max((finish.prompt_tokens for finish in finishes), default=0)
    completion = sum(finish.completion_tokens for finish in finishes)
    cached = max((finish.cached_tokens for finish in finishes), default=0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _described(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _readable(data), "logprob": logprob, "bytes": list(data)}


def _readable(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
