"""One request and its answer over HTTP, straight to the server or through a proxy."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from ._addresses import Reach, reach, reach_of_literal, resolve
from ._line import Allowance, HttpLine, Line, PlainLine, RefusedError, TlsLine

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}\Z")


class UnreachableError(Exception):
    """There is no connection to the server; another attempt may find one."""


@dataclass(frozen=True)
class Server:
    """A server as an address names it.

    Attributes:
        scheme: `http` or `https`.
        host: name or IP address, in ASCII.
        port: of its service.
    """

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port as a request names them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def server_of(parts: SplitResult) -> Server:
    """Return the server of an http or https address.

    Raises:
        ValueError: it names none, or a user.
    """
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("expected http:// or https:// and a host")
    if "@" in parts.netloc:
        raise ValueError("a user's name does not belong in it")
    try:
        host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
    except UnicodeError:
        host = ""
    if not _HOST.match(host):
        raise ValueError(f"{parts.hostname[:80]!r} is no host")
    return Server(parts.scheme, host, _PORTS[parts.scheme] if parts.port is None else parts.port)


@contextmanager
def exchange(
    url: str, headers: dict[str, str], allowance: Allowance, least: Reach
) -> Iterator[tuple[http.client.HTTPResponse, Reach]]:
    """Ask for an address; yield the answer, whose body is still to be read, and from where it is reached.

    The proxies of the environment are used as urllib uses them; what they are told to fetch is resolved by
    them, so that `least` holds for a host that is an IP address, and not for a name.

    Args:
        url: http or https.
        headers: of the request.
        allowance: of time and bytes.
        least: from how far the server has to be reached.

    Raises:
        UnreachableError: there is no connection.
        RefusedError: the server is not reached from as far as `least`, or the allowance is over.
        OSError, http.client.HTTPException, ValueError: the request or the answer broke off or is none.
    """
    parts = urlsplit(url)
    server, proxy = server_of(parts), None
    with suppress(KeyError):
        if not urllib.request.proxy_bypass(server.host):
            proxy = _Proxy(urllib.request.getproxies()[server.scheme])
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sock = None
    try:
        try:
            if proxy is None:
                sock, reached = _connect(server, allowance, least)
                line: Line = PlainLine(sock, allowance)
            else:
                reached = reach_of_literal(server.host)
                if reached < least:
                    raise _led_inside(server.host, reached)
                sock, _ = _connect(proxy.server, allowance, Reach.LOOPBACK)
                line = PlainLine(sock, allowance)
                if server.scheme == "https":
                    _tunnel(line, server, proxy, allowance)
                else:
                    path, headers = f"http://{server.authority}{path}", headers | proxy.headers
            if server.scheme == "https":
                line = TlsLine(line, server.host, allowance)
            connection = http.client.HTTPConnection(server.host, server.port)
            connection.sock = HttpLine(line, allowance)
            connection.request("GET", path, headers={"Host": server.authority, **headers})
        except OSError as error:
            raise UnreachableError(error.strerror or str(error)) from None
        yield connection.getresponse(), reached
    finally:
        if sock is not None:
            sock.close()


def _led_inside(address: str, reached: Reach) -> RefusedError:
    where = ("this device itself", "the link that this device is on", "a private network")[reached]
    return RefusedError(
        f"the redirect leads to {address}, an address of {where}, from a server that is reached from farther "
        "off: not followed. Pass allow_private=True (--allow-private) where that is meant"
    )


def _connect(server: Server, allowance: Allowance, least: Reach) -> tuple[socket.socket, Reach]:
    """Return a socket that is connected to one of the server's addresses, and the reach of that address.

    What is looked at is what is connected to: a name that says something else a moment later gains nothing.
    """
    failed: Exception = OSError(f"{server.host[:80]} has no address")
    for family, place in resolve(server.host, server.port, allowance.seconds()):
        reached = reach(place[0])
        if reached < least:
            failed = _led_inside(place[0], reached)
            continue
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(allowance.seconds())
            sock.connect(place)
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock, reached
    raise failed


class _Proxy:
    """A proxy of the environment: `http://user:password@host:port`, or `host:port`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            if parts.scheme not in _PORTS:
                raise ValueError("only proxies that speak HTTP are used")
            bare = parts._replace(scheme="http", netloc=parts.netloc.rpartition("@")[2])
            self.server = server_of(bare)
        except ValueError as error:
            shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"[:80]
            raise RefusedError(f"the environment names {shown!r} as a proxy: {error}") from None
        self.headers: dict[str, str] = {}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self.headers["Proxy-Authorization"] = f"Basic {base64.b64encode(user).decode()}"


def _tunnel(line: Line, server: Server, proxy: _Proxy, allowance: Allowance) -> None:
    host = f"[{server.host}]" if ":" in server.host else server.host
    lines = [f"CONNECT {host}:{server.port} HTTP/1.1", f"Host: {host}:{server.port}"]
    lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
    line.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    answer = http.client.HTTPResponse(HttpLine(line, allowance), method="CONNECT")  # type: ignore[arg-type]
    answer.begin()
    if not 200 <= answer.status < 300:
        raise OSError(f"the proxy answered {answer.status} {answer.reason[:80]}")
