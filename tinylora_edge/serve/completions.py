"""The routes that answer: chat completions and completions, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..runtime.answers import Answer, Finish, Piece, Token
from ..runtime.pool import AnswerStream
from ..runtime.tools import ToolCall
from .bodies import read_body
from .exchange import about, caller, read_json, refusal, unless_it_leaves
from .service import Service

VECTOR_HEADER = "x-tinylora-vector"

_LAST_WORDS_S = 3.0  # of a server that goes down: a stream that has not said why it ends is cut then


async def chat(request: Request, service: Service) -> Response:
    """Answer `POST /v1/chat/completions`."""
    return await _answer(request, service, chat=True)


async def complete(request: Request, service: Service) -> Response:
    """Answer `POST /v1/completions`."""
    return await _answer(request, service, chat=False)


async def _answer(request: Request, service: Service, *, chat: bool) -> Response:
    start = time.perf_counter()
    asked = read_body(await read_json(request, service), service.limits, chat=chat)
    header = request.headers.get(VECTOR_HEADER, "")
    streams = await service.open(asked, caller=caller(request), header=header)
    reply = Reply(asked.model, asked.chat)
    about(request).update(id=reply.name, stream=asked.stream)
    if asked.stream:
        return EventSourceResponse(
            _events(request, service, reply, streams, start, costs=asked.usage),
            sep="\n",
            shutdown_grace_period=_LAST_WORDS_S,
        )

    async def whole(stream: AnswerStream) -> Answer:
        answer = await stream.answer()
        service.metrics.first_token.observe(time.perf_counter() - start)
        return answer

    try:
        answers = await unless_it_leaves(request, service, asyncio.gather(*map(whole, streams)))
    finally:
        _end(request, service, streams)
    return JSONResponse(reply.whole(answers))


async def _events(
    request: Request,
    service: Service,
    reply: Reply,
    streams: Sequence[AnswerStream],
    start: float,
    *,
    costs: bool,
) -> AsyncIterator[dict[str, str]]:
    until = asyncio.get_running_loop().time() + service.limits.seconds
    begun = False
    try:
        if reply.chat:
            for index in range(len(streams)):
                yield _event(reply.chunk(index, None, {"role": "assistant", "content": ""}))
        async for index, what in _merged(streams, until):
            if not begun:
                begun = True
                service.metrics.first_token.observe(time.perf_counter() - start)
            for chunk in reply.chunks(index, what):
                yield _event(chunk)
        if costs:
            yield _event(reply.cost([stream.finish for stream in streams if stream.finish is not None]))
        yield {"data": "[DONE]"}
    except Exception as error:  # the response has begun: the error is its last event
        yield {"data": bytes(refusal(request, error).body).decode()}
    finally:
        _end(request, service, streams)


async def _merged(streams: Sequence[AnswerStream], until: float) -> AsyncIterator[tuple[int, Piece | Finish]]:
    """Yield the pieces of all answers as they come, and the end of each; TimeoutError after `until`."""

    async def step(index: int) -> tuple[int, Piece | None]:
        async for piece in streams[index]:
            return index, piece
        return index, None

    steps = {asyncio.create_task(step(index)) for index in range(len(streams))}
    try:
        while steps:
            left = until - asyncio.get_running_loop().time()
            done, steps = await asyncio.wait(steps, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise TimeoutError
            for task in done:
                index, piece = task.result()
                if piece is not None:
                    yield index, piece
                    steps.add(asyncio.create_task(step(index)))
                elif (finish := streams[index].finish) is not None:
                    yield index, finish
    finally:
        for task in steps:
            task.cancel()


def _event(content: Any) -> dict[str, str]:
    return {"data": json.dumps(content, ensure_ascii=False, separators=(",", ":"))}


def _end(request: Request, service: Service, streams: Sequence[AnswerStream]) -> None:
    """Give up what was not read, count what was, and note it for the log."""
    for stream in streams:
        stream.close()
    finishes = [stream.finish for stream in streams if stream.finish is not None]
    cost = usage(finishes)
    for kind in ("prompt", "completion"):
        service.metrics.tokens.labels(kind).inc(cost[f"{kind}_tokens"])
    service.metrics.tokens.labels("cached").inc(cost["prompt_tokens_details"]["cached_tokens"])
    service.remember(about(request)["id"], streams)
    vector = streams[0].vector
    about(request).update(
        sequence=None if vector is None else vector.sequence,
        prompt_tokens=cost["prompt_tokens"],
        cached_tokens=cost["prompt_tokens_details"]["cached_tokens"],
        completion_tokens=cost["completion_tokens"],
        finish=[finish.reason for finish in finishes],
    )


@dataclass(frozen=True)
class Reply:
    """The replies to one request, in OpenAI's shapes: whole, or in chunks."""

    model: str
    chat: bool
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    made: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the reply with whole answers."""
        choices = []
        for index, answer in enumerate(answers):
            choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish.reason}
            choice["logprobs"] = self._logprobs(answer.tokens)
            if self.chat:
                content = None if answer.calls and not answer.text else answer.text
                choice["message"] = {"role": "assistant", "content": content, "refusal": None}
                if answer.calls:
                    choice["message"]["tool_calls"] = [self._call(index, call) for call in answer.calls]
            else:
                choice["text"] = answer.text
            choices.append(choice)
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage([a.finish for a in answers])}

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
        return {**self._head(self._chunk_kind), "choices": [choice]}

    def _call(self, index: int, call: ToolCall) -> dict[str, Any]:
        """Return a call of an answer in OpenAI's shape."""
        return {
            "id": f"call_{self.name}_{index}_{call.index}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def cost(self, finishes: Sequence[Finish]) -> dict[str, Any]:
        """Return the chunk that says what all of it cost."""
        return {**self._head(self._chunk_kind), "choices": [], "usage": usage(finishes)}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.name}", "object": kind, "created": self.made, "model": self.model}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not tokens:
            return None
        if self.chat:
            content = [
                {
                    **_described(token.data, token.logprob),
                    "top_logprobs": [_described(data, logprob) for data, logprob in token.likeliest],
                }
                for token in tokens
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [_shown(token.data) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{_shown(data): p for data, p in token.likeliest} for token in tokens],
        }


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


def _described(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _shown(data), "logprob": logprob, "bytes": list(data)}


def _shown(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
