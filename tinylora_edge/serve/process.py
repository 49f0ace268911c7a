"""A server as a process: its socket and connections, its log, and its end."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..version import __version__
from ..wire import frame
from .completions import LOG
from .service import Service

_SWITCH_S = 0.0005  # most that a Python thread delays the next token; Python's default is 5 ms
GRACE_S = 30.0  # that answers have to end by themselves
_END_S = 3  # more, after which connections are cut
_PATIENCE_S = 30  # that a client may be idle, or take to send a request's head
_CONNECTIONS, _BACKLOG = 16_384, 512
_HEADERS_BYTES = 1 << 16  # beside a vector


class _JsonLine(logging.Formatter):
    """A line of JSON a record: no prompts, no answers, no vectors."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": at, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Connection(H11Protocol):
    """A connection that ends where its client is idle, also before a first request's whole head.

    uvicorn's own `timeout_keep_alive` begins behind a response, and ends with the next byte.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        end = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, end)

    def data_received(self, data: bytes) -> None:
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        if self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            self.timeout_keep_alive_task = timer
        elif timer is not None:
            timer.cancel()


class _Server(uvicorn.Server):
    """A server that leaves in steps: `/health` says so for `drain` seconds, then running answers have `grace`
    seconds to end, then they get an error event. Whoever asks a second time gets all of it at once."""

    def __init__(self, config: uvicorn.Config, service: Service, drain: float, grace: float) -> None:
        super().__init__(config)
        self._service, self._drain, self._grace = service, drain, grace
        self._leaves: float | None = None  # when it takes no more requests

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear a signal: SIGTERM is no error, and Ctrl-C does not wait for a load balancer."""
        if sig != signal.SIGTERM:
            self._captured_signals.append(sig)  # which uvicorn raises once it has ended
        self.force_exit = again = self._leaves is not None
        self._leaves = time.monotonic() + (self._drain if sig == signal.SIGTERM and not again else 0.0)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end."""
        if self._leaves is None:
            return await super().on_tick(counter)
        if not self._service.leaving:
            self._service.leaving = True
            _event("drain", seconds=self._drain, running=self._service.pool.busy().running)
        return await super().on_tick(counter) or time.monotonic() >= self._leaves

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: no new requests, some time for those that are answered, an error event for the rest."""
        loop = asyncio.get_running_loop()
        self._service.leaving = self._service.draining = True
        _event("stop", grace=self._grace, running=self._service.pool.busy().running)
        closing = loop.call_later(self._grace, loop.run_in_executor, None, self._service.close)
        await super().shutdown(sockets)
        closing.cancel()
        await asyncio.to_thread(self._service.close)


def _event(name: str, **fields: object) -> None:
    LOG.info(name, extra={"fields": fields})


def run(
    app: Starlette,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    quiet: bool = False,
    drain: float = 0.0,
    grace: float = GRACE_S,
) -> None:
    """Answer requests until the process gets SIGTERM, and return; or SIGINT, which is a KeyboardInterrupt.

    Args:
        ready: called with the server's address once it takes connections.
        quiet: log what fails alone.
        drain: seconds after SIGTERM in which requests are still taken, while `/health` has status 503.
        grace: seconds after that in which running answers may end. A second signal ends both.

    OSError: there is no such address, or the port is taken.
    """
    sys.setswitchinterval(_SWITCH_S)
    service: Service = app.state.service
    service.hosts = frozenset({host, "localhost", "127.0.0.1", "::1"})
    most = _most_connections()
    backlog = min(_BACKLOG, most // 8)  # as many may be accepted before the first of them is counted
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLine())
    for name in (LOG.name, "uvicorn", "asyncio", "psycopg.pool"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.ERROR)  # clients provoke the warnings of libraries: they would fill the log
    LOG.setLevel(logging.WARNING if quiet else logging.INFO)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_PATIENCE_S,
        timeout_graceful_shutdown=math.ceil(grace) + _END_S,
        http=_Connection,
        limit_concurrency=most,
        backlog=backlog,
        h11_max_incomplete_event_size=_HEADERS_BYTES + 2 * frame.longest(service.pool.bases.most),
    )
    AppStatus.should_exit = False  # that of an earlier server in this process
    AppStatus.enable_automatic_graceful_drain = False  # which would cut streams: they end with the pool
    with _listening(host, port, backlog) as bound:
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{bound.getsockname()[1]}")
        _event("start", model=service.name, version=__version__)
        _Server(config, service, drain, grace).run([bound])


def _listening(host: str, port: int, backlog: int = _BACKLOG) -> socket.socket:
    bound = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=backlog
    )
    # asyncio does this only where a socket names its protocol, which those of `create_server` do not: every
    # token of a stream would wait up to 40 ms for the client's acknowledgement of what was sent before it.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _most_connections() -> int:
    """Raise the limit on open files, and return how many connections half of it is enough for."""
    try:
        import resource
    except ImportError:
        return _CONNECTIONS
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        files = most
    return min(_CONNECTIONS, files // 2) if files > 0 else _CONNECTIONS
