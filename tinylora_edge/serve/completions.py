"""The routes that answer: chat completions and completions, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..runtime.answers import Answer, Finish, Piece
from ..runtime.completions import Reply, usage
from ..runtime.pool import AnswerStream
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
