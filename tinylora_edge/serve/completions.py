"""The routes that answer: chat completions and completions, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..runtime.pool.desk import AnswerStream
from ..runtime.pool.request import Answer, Finish, Piece
from .bodies import Asked, Reply, read_body
from .exchange import about, note_failure, read_json, unless_it_leaves
from .service import Service

VECTOR_HEADER = "x-tinylora-vector"

_DRAIN_S = 2.0
_LAST_WORDS_S = 2.0  # after which a stream that has not said why it ends is cut


async def chat(request: Request, service: Service) -> Response:
    """Answer `POST /v1/chat/completions`."""
    return await _answer(request, service, chat=True)


async def complete(request: Request, service: Service) -> Response:
    """Answer `POST /v1/completions`."""
    return await _answer(request, service, chat=False)


async def _answer(request: Request, service: Service, *, chat: bool) -> Response:
    start = time.perf_counter()
    key_user = service.authorize(request.headers)
    asked = read_body(await read_json(request, service), service.limits, chat=chat)
    header = request.headers.get(VECTOR_HEADER, "")
    streams = await service.open(asked, key_user=key_user, header=header)
    reply = Reply(asked.model, asked.chat)
    about(request).update(id=reply.name, model=asked.model[:160], stream=asked.stream)
    if asked.stream:
        going_down = anyio.Event()  # set where another server than ours is told to end
        return EventSourceResponse(
            _events(request, service, asked, reply, streams, start, going_down),
            sep="\n",
            send_timeout=service.limits.upload,
            shutdown_event=going_down,
            shutdown_grace_period=_DRAIN_S + _LAST_WORDS_S,
        )
    try:
        answers = await unless_it_leaves(request, service, _wholes(service, streams, start))
    finally:
        for stream in streams:
            stream.close()
        _note(request, service, streams)
    return JSONResponse(reply.whole(answers))


async def _wholes(service: Service, streams: Sequence[AnswerStream], start: float) -> list[Answer]:
    async def whole(stream: AnswerStream) -> Answer:
        answer = await stream.answer()
        service.metrics.first_token(time.perf_counter() - start)
        return answer

    return list(await asyncio.gather(*(whole(stream) for stream in streams)))


async def _events(
    request: Request,
    service: Service,
    asked: Asked,
    reply: Reply,
    streams: Sequence[AnswerStream],
    start: float,
    going_down: anyio.Event,
) -> AsyncIterator[dict[str, str]]:
    """Yield the events of a stream: chunks, and `[DONE]` or an error at the end."""
    watching = asyncio.create_task(_drain_when(going_down, service))
    until = asyncio.get_running_loop().time() + service.limits.seconds
    begun = False
    try:
        if asked.chat:
            for index in range(len(streams)):
                yield _event(reply.first(index))
        async for index, what in _merged(streams, until):
            if not begun:
                begun = True
                service.metrics.first_token(time.perf_counter() - start)
            yield _event(reply.piece(index, what) if isinstance(what, Piece) else reply.last(index, what))
        if asked.usage:
            yield _event(reply.cost([stream.finish for stream in streams if stream.finish is not None]))
        yield {"data": "[DONE]"}
    except Exception as error:  # the response has begun: the error is its last event
        yield _event(note_failure(request, error).body)
    finally:
        watching.cancel()
        for stream in streams:
            stream.close()
        _note(request, service, streams)


async def _merged(streams: Sequence[AnswerStream], until: float) -> AsyncIterator[tuple[int, Piece | Finish]]:
    """Yield the pieces of all answers as they come, and the end of each.

    Raises:
        TimeoutError: it is later than it may be.
        Those of the streams.
    """
    steps: dict[asyncio.Task[Piece], int] = {}

    def step(index: int) -> None:
        steps[asyncio.create_task(_next(streams[index]))] = index

    try:
        for index in range(len(streams)):
            step(index)
        while steps:
            left = until - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait(steps, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise TimeoutError
            for task in done:
                index = steps.pop(task)
                piece = task.result()
                if piece is not None:
                    yield index, piece
                    step(index)
                elif (finish := streams[index].finish) is not None:
                    yield index, finish
    finally:
        for task in steps:
            task.cancel()


async def _next(stream: AnswerStream) -> Any:
    """Return the next piece; None at the end, since a task cannot raise StopAsyncIteration."""
    async for piece in stream:
        return piece
    return None


async def _drain_when(going_down: anyio.Event, service: Service) -> None:
    await going_down.wait()
    await service.drain(_DRAIN_S)


def _event(content: Any) -> dict[str, str]:
    return {"data": json.dumps(content, ensure_ascii=False, separators=(",", ":"))}


def _note(request: Request, service: Service, streams: Sequence[AnswerStream]) -> None:
    finishes = [stream.finish for stream in streams if stream.finish is not None]
    for finish in finishes:
        service.metrics.answer(finish)
    service.remember(about(request)["id"], streams)
    vector = streams[0].vector
    about(request).update(
        sequence=None if vector is None else vector.sequence,
        prompt_tokens=max((finish.prompt_tokens for finish in finishes), default=0),
        cached_tokens=max((finish.cached_tokens for finish in finishes), default=0),
        completion_tokens=sum(finish.completion_tokens for finish in finishes),
        finish=[finish.reason for finish in finishes],
    )
