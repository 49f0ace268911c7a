"""A server as a process: its socket and connections, its log, and how it ends."""

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

_SWITCH_S = 0.0005  # most that another Python thread delays the next token; Python's default is 5 ms
GRACE_S = 30.0  # time that running answers have to end by themselves
_END_S = 3  # time after that in which connections may end before they are cut
_PATIENCE_S = 30  # time that a client may be idle, or take to send a request's head
_CONNECTIONS, _BACKLOG = 16_384, 512  # most open connections, and most that wait to be accepted
_HEADERS_BYTES = 1 << 16  # most bytes of a request's head, without a vector in it


class _JsonLine(logging.Formatter):
    """A record as a line of JSON. Records have no prompts, answers or vectors."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": at, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Connection(H11Protocol):
    """A connection that is closed when its client is idle, also while a head is not complete.

    uvicorn itself starts `timeout_keep_alive` only after a response, and stops it at the next byte.
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
    """A server that ends in steps. For `drain` seconds `/health` has status 503, then running answers have
    `grace` seconds to end, then they get an error event. A second signal skips the waits."""

    def __init__(self, config: uvicorn.Config, service: Service, drain: float, grace: float) -> None:
        super().__init__(config)
        self._service, self._drain, self._grace = service, drain, grace
        self._leaves: float | None = None  # when, by the monotonic clock, it stops taking requests

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end. SIGTERM is no error; Ctrl-C is one, and does not wait for a load balancer."""
        if sig != signal.SIGTERM:
            self._captured_signals.append(sig)  # uvicorn raises these once the server has ended
        self.force_exit = again = self._leaves is not None
        self._leaves = time.monotonic() + (self._drain if sig == signal.SIGTERM and not again else 0.0)

    async def on_tick(self, counter: int) -> bool:
        """Tell uvicorn whether to shut down now."""
        if self._leaves is None:
            return await super().on_tick(counter)
        if not self._service.leaving:
            self._service.leaving = True
            _event("drain", seconds=self._drain, running=self._service.pool.busy().running)
        return await super().on_tick(counter) or time.monotonic() >= self._leaves

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, let running answers end for a while, and send the rest an error event."""
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
    backlog = min(_BACKLOG, most // 8)  # all of them may be accepted before the first is counted
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLine())
    for name in (LOG.name, "uvicorn", "asyncio", "psycopg.pool"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.ERROR)  # clients can cause libraries' warnings, which would fill the log
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
    AppStatus.should_exit = False  # an earlier server in this process may have set it
    AppStatus.enable_automatic_graceful_drain = False  # it would cut streams, which end with the pool
    with _listening(host, port, backlog) as bound:
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{bound.getsockname()[1]}")
        _event("start", model=service.name, version=__version__)
        _Server(config, service, drain, grace).run([bound])


def _listening(host: str, port: int, backlog: int) -> socket.socket:
    bound = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=backlog
    )
    # Else each token of a stream would wait up to 40 ms until the client has acknowledged the one before.
    # asyncio sets this only for sockets that name their protocol, which those of `create_server` do not.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _most_connections() -> int:
    """Raise the limit on open files to its maximum, and return how many connections there may be: half of
    it, or `_CONNECTIONS` if that is less."""
    try:
        import resource
    except ImportError:
        return _CONNECTIONS
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        files = most
    return min(_CONNECTIONS, files // 2) if files > 0 else _CONNECTIONS
