"""The device's end: `fetch` brings the newest vector of a stream from a server that is not trusted.

The standard library alone, since this runs on devices. Whatever the server or the link does, a fetch ends
within its deadline, reads at most one frame and 64 KB of what announces it, and returns bytes that are still
to be checked: a policy decides what may be applied.
"""

from __future__ import annotations

import http.client
import random
import re
import string
import time
from dataclasses import dataclass
from email.message import Message
from urllib.parse import quote, urldefrag, urljoin, urlsplit

from ..basis import Basis
from ..errors import TransferError
from ..limits import EXCHANGE_BYTES, REDIRECTS
from ..system import __version__
from ..wire import frame
from . import layout
from ._addresses import Reach
from ._exchange import Server, UnreachableError, exchange, server_of
from ._line import Allowance, RefusedError
from .layout import DEFAULT_STREAM

_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{1,200}"\Z')
_RETRIED = {408, 425, 429, *range(500, 600)}
_REDIRECTS = {301, 302, 303, 307, 308}
_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 60.0


@dataclass(frozen=True)
class Fetched:
    """The answer of a server.

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
    allow_private: bool = False,
) -> Fetched:
    """Return the newest published vector of a stream.

    The rules:

    1. Only http and https are followed, at most 5 redirects, and never from https to http. What is passed in
       `headers` goes to the origin of `url` (scheme, host and port) alone.
    2. At most the longest frame of the basis is read as a body, and 64 KB with headers, redirects, trailers
       and a proxy's answer, whatever the server announces or sends.
    3. A body shorter than announced, a broken connection, silence for `idle` seconds and the statuses 408,
       425, 429 and 5xx are tried again, after 1, 2, 4, ... seconds of random extent or what the server's
       Retry-After asks for. Everything else is final.
    4. After `deadline` seconds it is over, also where bytes still trickle in, a name is not resolved, or a
       proxy does not answer.
    5. 304 is an answer only to a request that passed an ETag.
    6. A redirect does not lead nearer: from a public address to a private one, from a network to the link
       or the device itself. `url` itself may name any address. Names behind a proxy are the proxy's.

    Args:
        url: of the folder that `publish` wrote to.
        basis: that the vector is for.
        stream: which stream of vectors.
        etag: of what the device has; where nothing changed, no body is sent.
        deadline: seconds that all attempts may take together.
        idle: seconds to wait for a connection or the next byte.
        attempts: how often to ask at most.
        headers: to send besides, such as Authorization; a redirect to another origin goes without them.
        allow_private: follow redirects to private addresses too (rule 6).

    Raises:
        TransferError: no attempt brought an answer, or the answer is no vector of this basis.
    """
    wanted = Wanted(
        layout.latest(basis.id, stream),
        frame.longest(basis.size),
        "the longest frame of this basis: this is no vector",
        "nothing is published there for this basis and stream",
    )
    return download(
        url,
        wanted,
        etag=etag,
        deadline=deadline,
        idle=idle,
        attempts=attempts,
        headers=headers,
        allow_private=allow_private,
    )


@dataclass(frozen=True)
class Wanted:
    """A published file, as a device asks for it.

    Attributes:
        path: under the folder.
        limit: bytes that it has at most.
        longest: what is said of more bytes.
        absent: what it means that there is none.
    """

    path: str
    limit: int
    longest: str
    absent: str


def download(
    url: str,
    wanted: Wanted,
    *,
    etag: str | None = None,
    deadline: float = 300.0,
    idle: float = 30.0,
    attempts: int = 5,
    headers: dict[str, str] | None = None,
    allow_private: bool = False,
) -> Fetched:
    """Return a published file. Arguments and errors: see `fetch`; `wanted` says which file."""
    address = _address(url, wanted.path)
    if etag is not None and not _ETAG.match(etag):
        etag = None
    end = time.monotonic() + deadline
    why = ""
    attempts = max(attempts, 1)
    for attempt in range(1, attempts + 1):
        try:
            allowance = Allowance(end, idle, wanted.limit + EXCHANGE_BYTES)
            data, found = _ask(address, wanted, etag, headers or {}, allowance, allow_private)
            return Fetched(data, found, attempt)
        except _AgainError as error:
            why = str(error)
            wait = max(
                error.wait, random.uniform(0.5, 1) * min(_BACKOFF_S * 2 ** (attempt - 1), _MAX_BACKOFF_S)
            )
        if attempt == attempts or time.monotonic() + wait >= end:
            break
        time.sleep(wait)
    tried = f"{attempts} attempt{'' if attempts == 1 else 's'}"
    raise TransferError(
        f"{address} could not be fetched within {deadline:g} s and {tried}; number {attempt}: {why}"
    )


def _address(url: str, path: str) -> str:
    try:
        parts = urlsplit(url)
        server_of(parts)
        folder = quote(parts.path.rstrip("/"), safe=string.punctuation)
    except ValueError as error:
        raise TransferError(f"{url!r} is no http or https address of a folder of vectors: {error}") from None
    if parts.query or parts.fragment:
        raise TransferError(f"{url!r} has a query or a fragment: pass the address of a folder")
    return parts._replace(path=f"{folder}/{path}").geturl()


def _ask(
    address: str,
    wanted: Wanted,
    etag: str | None,
    headers: dict[str, str],
    allowance: Allowance,
    allow_private: bool,
) -> tuple[bytes | None, str | None]:
    """Ask once. Raises `_AgainError` where another attempt may help, and TransferError where it will not."""
    own = {"User-Agent": f"tinylora-edge/{__version__}", "Accept-Encoding": "identity", "Connection": "close"}
    if etag is not None:
        own["If-None-Match"] = etag
    least, given, status = Reach.LOOPBACK, headers, 0
    try:
        for _ in range(REDIRECTS + 1):
            with exchange(address, _merged(own, given), allowance, least) as (answer, reached):
                location = answer.headers.get("Location")
                if answer.status not in _REDIRECTS or location is None:
                    return _read(answer, address, wanted, etag)
                there = _redirected(address, location)
                if _origin(there) != _origin(address):
                    given = {}  # a caller's headers were meant for the first server; tokens have many names
                if not allow_private:
                    least = max(least, reached)
                address, status = there, answer.status
    except RefusedError as error:
        raise TransferError(f"{address}: {error}") from None
    except UnreachableError as error:
        raise _AgainError(f"no connection ({_shown(str(error))})") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, http.client.IncompleteRead):
            why = f"the body broke off after {len(error.partial)} bytes"
        else:
            why = _shown(f"{type(error).__name__}: {error}")
        raise _AgainError(why) from None
    raise TransferError(f"{address}: the server answered {status} more than {REDIRECTS} times")


def _merged(own: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """Return headers of which the caller's count where both have one, however it is written."""
    taken = {name.lower() for name in given}
    return {name: value for name, value in own.items() if name.lower() not in taken} | given


def _redirected(address: str, location: str) -> str:
    """Return the address that a server redirects to, if it is one to follow."""
    allowed = ("https",) if address.startswith("https:") else ("http", "https")
    try:
        # As browsers do, what is not ASCII is quoted; what is after # is the reader's own affair. http.client
        # makes a character of each byte, in ISO-8859-1.
        quoted = quote(location.strip(), safe=string.punctuation, encoding="iso-8859-1")
        there = urldefrag(urljoin(address, quoted)).url
        parts = urlsplit(there)
        server_of(parts)
        followed = parts.scheme in allowed
    except ValueError:
        followed = False
    if not followed:
        raise TransferError(
            f"{address}: the server redirects to {_shown(location)[:80]!r}, which is not followed"
        )
    return there


def _read(
    answer: http.client.HTTPResponse, address: str, wanted: Wanted, etag: str | None
) -> tuple[bytes | None, str | None]:
    if answer.status == 304 and etag is not None:
        return None, _etag(answer.headers) or etag
    if answer.status // 100 == 2 and answer.status != 200:
        raise TransferError(f"{address}: the server answered {answer.status}, where 200 or 304 was expected")
    if answer.status != 200:
        why = _shown(f"the server answered {answer.status} {answer.reason}")
        if answer.status in _RETRIED:
            raise _AgainError(why, _retry_after(answer.headers))
        if answer.status == 404:
            raise TransferError(f"{address}: {why}: {wanted.absent}")
        raise TransferError(f"{address}: {why}")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise TransferError(
            f"{address}: the server sent it as {answer.headers['Content-Encoding'][:40]!r}, which was not "
            "asked for: serve the files as they are"
        )
    data = answer.read(wanted.limit + 1)
    if len(data) > wanted.limit:
        raise TransferError(
            f"{address}: the server sends more than {wanted.limit} bytes, {wanted.longest}. It was not read "
            "further"
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


def _origin(url: str) -> Server:
    return server_of(urlsplit(url))
