"""`fetch`: the newest published vector of a stream, over HTTP, from a server that is not trusted.

The standard library alone, since this runs on devices. Whatever the server or the link does, a fetch ends
within its deadline, reads at most one frame and what announces it, and returns bytes that are still to be
checked: a policy decides what may be applied.
"""

from __future__ import annotations

import http.client
import io
import random
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any
from urllib.parse import urlsplit

from .._system import __version__
from ..basis import Basis
from ..errors import TransferError
from ..wire import frame, tags
from . import layout
from .layout import DEFAULT_STREAM

_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{1,200}"\Z')
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_MAX_REDIRECTS = 5
_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 60.0


@dataclass(frozen=True)
class Fetched:
    """What a server had.

    Attributes:
        data: the bytes, unchecked; None where nothing changed since the ETag that was passed.
        etag: to pass the next time; None where the server gave none, or none that is sane.
        attempts: how often it was asked.
    """

    data: bytes | None
    etag: str | None
    attempts: int


class _AgainError(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


def fetch(
    url: str,
    basis: Basis,
    stream: str = DEFAULT_STREAM,
    *,
    etag: str | None = None,
    deadline: float = 300.0,
    idle: float = 30.0,
    attempts: int = 5,
    headers: dict[str, str] | None = None,
) -> Fetched:
    """Return the newest published vector of a stream.

    The rules:

    1. Only http and https are followed, at most 5 redirects, and never from https to http.
    2. At most the longest frame of the basis is read, whatever the server announces or sends.
    3. A body shorter than announced, a broken connection, silence for `idle` seconds and the statuses 408,
       425, 429 and 5xx are tried again, after 1, 2, 4, ... seconds of random extent or what the server's
       Retry-After asks for. Everything else is final.
    4. After `deadline` seconds it is over, also where bytes still trickle in. (Resolving a name is the
       system's, and takes as long as the system lets it.)
    5. 304 is an answer only to a request that passed an ETag.

    Args:
        url: of the folder that `publish` wrote to.
        basis: that the vector is for.
        stream: which stream of vectors.
        etag: of what the device has; where nothing changed, no body is sent.
        deadline: seconds that all attempts may take together.
        idle: seconds to wait for a connection or the next byte.
        attempts: how often to ask at most.
        headers: to send besides, such as Authorization.

    Raises:
        TransferError: no attempt brought an answer, or the answer is no vector of this basis.
    """
    path = layout.latest(basis.id, stream)
    address = _address(url, path)
    limit = frame.HEADER_BYTES + 4 * basis.size + max(tags.SIZES.values())
    if etag is not None and not _ETAG.match(etag):
        etag = None
    end = time.monotonic() + deadline
    why = ""
    attempts = max(attempts, 1)
    for attempt in range(1, attempts + 1):
        try:
            data, found = _ask(address, limit, etag, headers or {}, end, idle)
            return Fetched(data, found, attempt)
        except _AgainError as error:
            why = str(error)
            wait = max(
                error.wait, random.uniform(0.5, 1) * min(_BACKOFF_S * 2 ** (attempt - 1), _MAX_BACKOFF_S)
            )
        if attempt == attempts or time.monotonic() + wait >= end:
            break
        time.sleep(wait)
    raise TransferError(
        f"{address} could not be fetched within {deadline:g} s and {attempts} attempts; number {attempt}: "
        f"{why}"
    )


def _address(url: str, path: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise TransferError(f"{url!r} is no http or https address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TransferError(f"{url!r} is no http or https address of a folder of vectors")
    if parts.query or parts.fragment:
        raise TransferError(f"{url!r} has a query or a fragment: pass the address of a folder")
    return f"{url.rstrip('/')}/{path}"


def _ask(
    address: str, limit: int, etag: str | None, headers: dict[str, str], end: float, idle: float
) -> tuple[bytes | None, str | None]:
    """Ask once. Raises `_AgainError` where another attempt may help, and TransferError where it will not."""
    sent = {"User-Agent": f"tinylora-edge/{__version__}", "Accept-Encoding": "identity", **headers}
    if etag is not None:
        sent["If-None-Match"] = etag
    opener = _opener(end, idle)
    try:
        with opener.open(urllib.request.Request(address, headers=sent), timeout=idle) as answer:
            return _read(answer, address, limit)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 304 and etag is not None:
                return None, _etag(error.headers) or etag
            why = _shown(f"the server answered {error.code} {error.reason}")
            if error.code in _RETRIED:
                raise _AgainError(why, _retry_after(error.headers)) from None
        if error.code == 404:
            why += ": nothing is published there for this basis and stream"
        raise TransferError(f"{address}: {why}") from None
    except urllib.error.URLError as error:
        reason = error.reason
        why = (
            (getattr(reason, "strerror", None) or str(reason)) if isinstance(reason, OSError) else str(reason)
        )
        raise _AgainError(f"no connection ({_shown(why)})") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, http.client.IncompleteRead):
            why = f"the body broke off after {len(error.partial)} bytes"
        else:
            why = _shown(f"{type(error).__name__}: {error}")
        raise _AgainError(why) from None


def _read(answer: Any, address: str, limit: int) -> tuple[bytes, str | None]:
    if answer.status != 200:
        raise TransferError(f"{address}: the server answered {answer.status}, where 200 or 304 was expected")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise TransferError(
            f"{address}: the server sent it as {answer.headers['Content-Encoding'][:40]!r}, which was not "
            "asked for: serve the files as they are"
        )
    data = answer.read(limit + 1)
    if len(data) > limit:
        raise TransferError(
            f"{address}: the server sends more than {limit} bytes, the longest frame of this basis: this "
            "is no vector. It was not read further"
        )
    # http.client keeps count of what a Content-Length promised and did not come.
    if answer.length:
        raise http.client.IncompleteRead(data, answer.length)
    if not data:
        raise _AgainError("the body is empty")
    return data, _etag(answer.headers)


def _shown(text: str) -> str:
    """What a server said, for an error: short, and without characters that would command a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text.strip()[:200])


def _etag(headers: Message) -> str | None:
    found = headers.get("ETag", "")
    return found if _ETAG.match(found) else None


def _retry_after(headers: Message) -> float:
    value = headers.get("Retry-After", "")
    return float(value) if value.isdecimal() and len(value) < 6 else 0.0


def _opener(end: float, idle: float) -> urllib.request.OpenerDirector:
    """An opener for http and https alone, whose sockets know the deadline."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Http(end, idle),
        _Https(end, idle),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _MAX_REDIRECTS
    max_repeats = 2

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in allowed:
            raise TransferError(
                f"{req.full_url}: the server redirects to {newurl[:80]!r}, which is not followed"
            )
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            made.remove_header("Authorization")  # it was meant for the first server
        return made


class _Http(urllib.request.HTTPHandler):
    def __init__(self, end: float, idle: float) -> None:
        super().__init__()
        self._timed = end, idle

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connector(http.client.HTTPConnection, *self._timed), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, end: float, idle: float) -> None:
        super().__init__()
        self._timed = end, idle

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connector(http.client.HTTPSConnection, *self._timed), req)


def _connector(kind: type[http.client.HTTPConnection], end: float, idle: float) -> Any:
    """Return a class of connections whose reads end with the deadline, however slowly bytes come."""

    class Timed(kind):  # type: ignore[valid-type, misc]
        sock: Any

        def connect(self) -> None:
            self.timeout = _left(end, idle)
            super().connect()
            self.sock = _Deadline(self.sock, lambda: _left(end, idle))

    return Timed


def _left(end: float, idle: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline is over")
    return min(left, idle)


class _Deadline:
    """A socket whose every read waits no longer than what is left."""

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock, self._time_left = sock, left

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._time_left))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        super().__init__()
        self._sock, self._time_left = sock, left
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open until it is closed itself

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._time_left())
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()
