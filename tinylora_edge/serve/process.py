"""A server as a process: its socket, its log, and its end."""

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

from ..errors import TinyLoraError
from ..wire import frame
from .exchange import LOG
from .service import Service

_GRACE_S = 2.0  # that answers have to end by themselves
_END_S = 4  # after which connections are cut
_KEEP_ALIVE_S = 30
_CONNECTIONS = 16_384
_BACKLOG = 2048
_HEADERS_BYTES = 1 << 16  # beside a vector


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


class _Server(uvicorn.Server):
    """A server whose answers end before its connections do."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
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
    service: Service = app.state.service
    service.access.hosts = frozenset({host, "localhost", "127.0.0.1", "::1"})
    _allow_many_files()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    for name, level in ((LOG.name, logging.WARNING if quiet else logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_END_S,
        limit_concurrency=_CONNECTIONS,
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=_HEADERS_BYTES + 2 * frame.longest(service.pool.bases.most),
    )
    with _listening(host, port) as bound:
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


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens, and on whose connections small writes leave at once.

    asyncio sees to that only where a socket names its protocol, which those of `create_server` do not. Then
    every token of a stream waits up to 40 ms for the client's acknowledgement of what was sent before it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _allow_many_files() -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
