"""A server as a process: its socket and connections, its log, and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ..errors import TinyLoraError
from ..wire import frame
from .exchange import LOG
from .service import Service

_SWITCH_S = (
    0.0005  # that one thread computes in Python while the next token waits: .2 instead of 5 ms each time
)
_GRACE_S = 2.0  # that answers have to end by themselves
_END_S = 3  # after which connections are cut
_KEEP_ALIVE_S = 30
_HEAD_S = 10.0  # that a request's line and headers may take, a connection's first from its beginning
_SEND_S = 30.0  # that a reader may leave what is sent where it is
_CONNECTIONS, _BACKLOG = 16_384, 512
_LIBRARY_LINES, _LIBRARY_S = 20, 10.0  # of the log: what clients provoke must not fill it
_HEADERS_BYTES = 1 << 16  # beside a vector


_LIBRARIES = (("uvicorn", logging.WARNING), ("asyncio", logging.WARNING))


class _Line(logging.Formatter):
    """A line of JSON a record: no prompts, no answers, no vectors."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        said |= getattr(record, "about", {})
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


class _Seldom(logging.Filter):
    """What libraries say, as long as it is not too much at once."""

    _since, _count = -_LIBRARY_S, 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._since >= _LIBRARY_S:
            self._since, self._count = now, 0
        self._count += 1
        return self._count <= _LIBRARY_LINES


class _State(ServerState):
    """What a server's connections share; `idle` are those that wait for a client, the longest first."""

    def __init__(self) -> None:
        super().__init__()
        self.idle: dict[_Connection, None] = {}


class _Connection(H11Protocol):
    """A connection that ends where a request's head does not come, or what is sent is not taken, in time.

    `limit_concurrency` is how many there may be: beyond it, the one that is idle longest ends for a new one.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(server_state, _State)
        self._idle, self._most = server_state.idle, self.limit_concurrency or _CONNECTIONS
        self.limit_concurrency = None  # beyond which uvicorn answers nobody
        self._head: asyncio.TimerHandle | None = None
        self._unsent: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # writing pauses while anything is unsent
        self._idle[self] = None
        self._await_head()
        if len(self.connections) > self._most:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.resume_writing()
        self._begin()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._begin()
        else:
            self._await_head()

    def on_response_complete(self) -> None:
        self._idle[self] = None
        super().on_response_complete()
        if not self.cycle.response_complete:  # the next one was there already
            self._begin()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._idle[self] = None
        self._unsent = self._unsent or self.loop.call_later(_SEND_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unsent is not None:
            self._unsent.cancel()
            self._unsent = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._begin()

    def _await_head(self) -> None:
        self._head = self._head or self.loop.call_later(_HEAD_S, self.transport.abort)

    def _begin(self) -> None:
        self._idle.pop(self, None)
        if self._head is not None:
            self._head.cancel()
            self._head = None


class _Server(uvicorn.Server):
    """A server whose answers end before its connections do."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.server_state = _State()
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: no new requests, a moment for those that are answered, an error event for the rest."""
        draining = asyncio.create_task(self._service.drain(_GRACE_S))
        await super().shutdown(sockets)
        await draining


def serve(app: Starlette, *, host: str, port: int, ready: Callable[[str], None], quiet: bool = False) -> None:
    """Answer requests until the process is told to end.

    `ready` is called with the server's address once it answers; `quiet` logs what fails alone.

    Raises:
        OSError: there is no such address, or the port is taken.
    """
    sys.setswitchinterval(_SWITCH_S)
    service: Service = app.state.service
    service.access.hosts = frozenset({host, "localhost", "127.0.0.1", "::1"})
    most = _most_connections()
    backlog = min(_BACKLOG, most // 8)  # as many may be accepted before the first of them is counted
    for name, level in ((LOG.name, logging.WARNING if quiet else logging.INFO), *_LIBRARIES):
        handler, logger = logging.StreamHandler(sys.stderr), logging.getLogger(name)
        handler.setFormatter(_Line())
        if name != LOG.name:
            handler.addFilter(_Seldom())
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_END_S,
        http=_Connection,
        limit_concurrency=most,
        backlog=backlog,
        h11_max_incomplete_event_size=_HEADERS_BYTES + 2 * frame.longest(service.pool.bases.most),
    )
    with _listening(host, port, backlog) as bound:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{bound.getsockname()[1]}"
        _Server(config, service, lambda: ready(address)).run([bound])


def check_exposure(host: str, *, has_keys: bool) -> None:
    """Refuse, with a TinyLoraError, to answer other machines without API keys."""
    loopback = host == "localhost"
    with suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    if not loopback and not has_keys:
        raise TinyLoraError(
            f"{host} can be reached by others, and this server would answer all of them: pass --api-keys "
            "FILE, or serve on 127.0.0.1"
        )


def _listening(host: str, port: int, backlog: int = _BACKLOG) -> socket.socket:
    """Return a socket that listens, and on whose connections small writes leave at once.

    asyncio sees to that only where a socket names its protocol, which those of `create_server` do not. Then
    every token of a stream waits up to 40 ms for the client's acknowledgement of what was sent before it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.create_server((host, port), family=family, backlog=backlog)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _most_connections() -> int:
    """Let this process have many files, and return for how many connections half of them are enough."""
    files = 2 * _CONNECTIONS
    with suppress(ImportError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_CONNECTIONS, files // 2) if files > 0 else _CONNECTIONS
