"""The device's side: `fetch` brings the newest vector of a user from a server that is not trusted.

It runs on devices, so it needs the standard library alone, and fsspec for buckets. It uses http.client, as
urllib and libraries like it have no deadline for a whole exchange, and no limit on headers and trailers.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import random
import re
import socket
import ssl
import string
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

from ..basis import Bases
from ..errors import TransferError
from ..version import __version__
from ..wire import frame
from ..wire.frame import DEFAULT_USER, RULE, is_portable
from .bucket import Bucket, shown

_IDLE_S = 30.0  # longest wait for the server's next bytes
_AROUND_BYTES = 1 << 16  # most bytes of status lines, headers, chunk sizes and trailers
_BACKOFF_S = 1.0  # wait before the second attempt; each later one is twice as long
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{1,200}"\Z')
_BUCKET = re.compile(r"(?!(?:https?|ftp)://)[A-Za-z0-9+.-]+://", re.IGNORECASE)  # not ftp, which all can read
_RETRIED = {408, 425, 429, *range(500, 600)}  # statuses

LATEST = "latest"
"""The file of a user's newest frame."""


def frame_path(factors_id: str, user: str, sequence: int | None = None) -> str:
    """Return the path of a user's frame with a sequence, or of the newest (docs/FORMAT.md has the tree).
    TransferError: the user's name is not safe in a path and an address."""
    if not is_portable(user):
        raise TransferError(f"user {user!r} is not safe in a path: {RULE}")
    return f"{factors_id}/{user}/{LATEST if sequence is None else f'{sequence:05d}.bin'}"


class Fetched(NamedTuple):
    """A server's answer: the bytes, unchecked, or None where nothing changed; and the next ETag."""

    data: bytes | None
    etag: str | None


def fetch(
    url: str,
    bases: Bases,
    user: str = DEFAULT_USER,
    *,
    etag: str | None = None,
    deadline: float = 300.0,
    attempts: int = 5,
    headers: dict[str, str] | None = None,
) -> Fetched:
    """Return the newest published frame of a user; a policy decides whether it may be applied.

    A web server is asked over https, and this device itself over http; no redirect is followed and no proxy
    used. At most the longest frame of the model is read, and 64 KB around it. A broken connection, 30 silent
    seconds and the statuses 408, 425, 429 and 5xx are tried again after 1, 2, 4, ... seconds; everything else
    is final. A bucket is asked through fsspec, with its own credentials, time-outs and attempts, and there is
    no ETag: the other arguments are for web servers.

    Args:
        url: of the folder that `publish` wrote to: `https://...`, or an address for fsspec (`s3://...`).
        etag: of what the device has: where nothing changed, no body is sent.
        deadline: seconds that all attempts may take together, without those in which the system looks up the
            server's name, and tries more than one address.
        headers: such as Authorization.

    TransferError: no attempt brought an answer, or the answer is no vector of this model.
    """
    path = frame_path(bases.id, user)
    if _BUCKET.match(url):
        return Fetched(_of_bucket(url, path, frame.longest(bases.most)), None)
    if attempts < 1:
        raise TransferError(f"{attempts} attempts are too few: at least 1 is needed")
    server, path = _address(url, path)
    agent = f"tinylora-edge/{__version__}"
    sent = {"User-Agent": agent, "Accept-Encoding": "identity", "Connection": "close", **(headers or {})}
    if etag is not None and _ETAG.match(etag):
        sent["If-None-Match"] = etag
    end = time.monotonic() + deadline
    for attempt in range(1, attempts + 1):
        try:
            return _ask(server, path, sent, end, frame.longest(bases.most))
        except (TransferError, ssl.SSLCertVerificationError) as error:
            raise TransferError(f"{shown(url)}: {error}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = _printable(str(error) or type(error).__name__)
        wait = random.uniform(0.5, 1) * _BACKOFF_S * 2 ** (attempt - 1)
        if attempt == attempts or time.monotonic() + wait >= end:
            break
        time.sleep(wait)
    raise TransferError(
        f"{shown(url)}: no vector within {deadline:g} s, in {attempt} of {attempts} attempts: {why}"
    )


def _of_bucket(url: str, path: str, limit: int) -> bytes:
    """Return a file of a bucket. TransferError: it is not there, or has more than `limit` bytes."""
    data = Bucket(url).read(path)
    if data is None:
        raise TransferError(f"{shown(url)}: nothing is published there for this model and user")
    if len(data) > limit:
        raise TransferError(
            f"{shown(url)}: {path} has more than {limit} bytes, the longest frame of this model"
        )
    return data


def _address(url: str, path: str) -> tuple[SplitResult, str]:
    """Return the parts of a folder's address, and the path on the server of a file in that folder."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme not in ("http", "https") or not re.match(r"[A-Za-z0-9._:%-]+\Z", host):
            raise ValueError("expected https:// and a host")
        if "@" in parts.netloc or parts.query or parts.fragment or parts.port == 0:
            raise ValueError("a user, a query or a fragment does not belong in it")
        folder = quote(parts.path.rstrip("/"), safe=string.punctuation)
    except ValueError as error:
        raise TransferError(f"{shown(url)!r} is not the address of a folder of vectors: {error}") from None
    if parts.scheme == "http" and not is_this_device(host):
        raise TransferError(
            f"{shown(url)} could be read by others on its way: publish over https (http is for "
            "localhost alone)"
        )
    return parts, f"{folder}/{path}"


def is_this_device(host: str) -> bool:
    """Tell whether a host is `localhost` or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ask(server: SplitResult, path: str, headers: dict[str, str], end: float, limit: int) -> Fetched:
    """Ask once. Raises TransferError where another attempt would change nothing."""

    def left() -> float:
        if (seconds := end - time.monotonic()) <= 0:
            raise TimeoutError("the deadline is over")
        return min(seconds, _IDLE_S)

    host, secure = server.hostname or "", server.scheme == "https"
    sock = socket.create_connection((host, server.port or (443 if secure else 80)), left())
    try:
        if secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection = http.client.HTTPConnection(host)
        connection.sock = _LimitedSocket(sock, left, limit + _AROUND_BYTES)
        try:
            connection.request("GET", path, headers={"Host": server.netloc, **headers})
        except ValueError:  # its text would show the header, which may be a token
            raise TransferError("a header has a line feed, or is not in Latin-1: correct headers") from None
        return _read(connection.getresponse(), headers.get("If-None-Match"), limit)
    finally:
        sock.close()


class _LimitedSocket(io.RawIOBase):
    """A connected socket for http.client, with limits on each wait and on all received bytes.

    `left` returns the seconds that the next wait may take, or raises; `size` is the most bytes.
    """

    def __init__(self, sock: socket.socket, left: Callable[[], float], size: int) -> None:
        super().__init__()
        self._sock, self._left, self._size = sock, left, size

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._size <= 0:
            raise TransferError("the server sends more than any vector has: not read further")
        self._sock.settimeout(self._left())
        count = self._sock.recv_into(buffer, min(len(buffer), self._size))
        self._size -= count
        return count

    def close(self) -> None:
        """Leave the socket open: whoever opened it closes it."""


def _read(answer: http.client.HTTPResponse, etag: str | None, limit: int) -> Fetched:
    found = answer.headers.get("ETag", "")
    fresh = found if _ETAG.match(found) else None
    if answer.status == 304 and etag is not None:
        return Fetched(None, fresh or etag)
    if answer.status != 200:
        why = _printable(f"the server answered {answer.status} {answer.reason}")
        if answer.status in _RETRIED:
            raise ConnectionError(why)
        if answer.status == 404:
            why += ": nothing is published there for this model and user"
        if "Location" in answer.headers:
            location = _printable(shown(answer.headers["Location"]))
            why += f": redirects are not followed, nor this one to {location}"
        raise TransferError(why)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise TransferError("the server compressed the file: serve files as they are")
    data = answer.read(limit + 1)
    if len(data) > limit:
        raise TransferError(f"the server sends more than {limit} bytes, the longest frame of this model")
    if answer.length or not data:  # `length`: bytes of the Content-Length that have not come
        raise ConnectionError(f"the body broke off after {len(data)} bytes")
    return Fetched(data, fresh)


def _printable(text: str) -> str:
    """Return a server's text for an error: short, and without control characters."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text.strip()[:200])
