"""A line to a server: a socket, plain or with TLS, all of whose waits and bytes come off an allowance.

Why not a client such as urllib3 or httpx: neither has a deadline over a whole exchange, nor a limit on the
bytes of a redirect, of headers or of trailers. Both would need a transport of their own, which is this file,
and a device would carry another dependency. And why not urllib: it reads the body of a redirect whole. So
`http.client` parses, and every byte that it sees has come through `_Reader`.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from ..limits import TLS_BYTES

T = TypeVar("T")

_RECORD_BYTES = 1 << 14


class RefusedError(Exception):
    """The server does what is not put up with; another attempt would not change it."""


class Allowance:
    """The time and the bytes that one attempt may still take, redirects included.

    Args:
        end: when it is over, by `time.monotonic`.
        idle: seconds that one wait may take.
        size: bytes that may be read in all: status lines, headers, bodies, trailers, answers of a proxy.
    """

    def __init__(self, end: float, idle: float, size: int) -> None:
        self._end, self._idle, self._size = end, idle, size
        self.left = size

    def seconds(self) -> float:
        """Return how long the next wait may take.

        Raises:
            TimeoutError: the deadline is over.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline is over")
        return min(left, self._idle)

    def room(self, asked: int) -> int:
        """Return how many bytes a read may return.

        Raises:
            RefusedError: there are none left.
        """
        if self.left <= 0:
            raise RefusedError(
                f"the server sends more than {self._size} bytes, headers and redirects included: this is no "
                "vector. It was not read further"
            )
        return min(asked, self.left)


class Line(Protocol):
    """A way to a server and back."""

    def receive(self, size: int) -> bytes:
        """Return what comes next, at most `size` bytes; nothing at the end."""

    def sendall(self, data: bytes) -> None:
        """Send all of it."""


class PlainLine:
    """A connected socket."""

    def __init__(self, sock: socket.socket, allowance: Allowance) -> None:
        self._sock, self._allowance = sock, allowance

    def receive(self, size: int) -> bytes:
        """Return what comes next, at most `size` bytes; nothing at the end."""
        self._sock.settimeout(self._allowance.seconds())
        return self._sock.recv(size)

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        self._sock.settimeout(self._allowance.seconds())
        self._sock.sendall(data)


class TlsLine:
    """TLS over another line; certificates are checked.

    The bytes under TLS are moved here and not by `ssl`, so that the handshake, and records without content
    that a server may send for ever, are waited for and counted like everything else.

    Raises:
        OSError: the handshake failed, say because nobody vouches for the certificate.
    """

    def __init__(self, under: Line, host: str, allowance: Allowance) -> None:
        self._under = under
        self._left = allowance.left + TLS_BYTES
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        self._tls = context.wrap_bio(self._arrived, self._leaving, server_hostname=host)
        self._pump(self._tls.do_handshake)

    def receive(self, size: int) -> bytes:
        """Return what comes next, at most `size` bytes; nothing at the end."""
        try:
            return self._pump(partial(self._tls.read, size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # what was cut is found by its length and its tag
            return b""

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        left = memoryview(data)
        while left:
            left = left[self._pump(partial(self._tls.write, left)) :]

    def _pump(self, step: Callable[[], T]) -> T:
        """Do a step of TLS, and move bytes until it is done."""
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except ssl.SSLError:
                with suppress(OSError):  # the alert that tells the server why
                    self._flush()
                raise
            else:
                self._flush()
                return done

    def _fill(self) -> None:
        data = self._under.receive(_RECORD_BYTES)
        self._left -= len(data)
        if self._left < 0:
            raise RefusedError(
                "the server sends TLS records without end: this is no vector. It was not read further"
            )
        if data:
            self._arrived.write(data)
        else:
            self._arrived.write_eof()

    def _flush(self) -> None:
        if self._leaving.pending:
            self._under.sendall(self._leaving.read())


class HttpLine:
    """A line as `http.client` takes it for a socket: its reads come off the allowance."""

    def __init__(self, line: Line, allowance: Allowance) -> None:
        self._line, self._allowance = line, allowance
        self.sendall = line.sendall

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a file of what the server sends."""
        return io.BufferedReader(_Reader(self._line, self._allowance))

    def close(self) -> None:
        """Leave the socket open: whoever opened it closes it, once the answer is read."""


class _Reader(io.RawIOBase):
    """The bytes that a server sends, as far as an allowance goes."""

    def __init__(self, line: Line, allowance: Allowance) -> None:
        super().__init__()
        self._line, self._allowance = line, allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._line.receive(self._allowance.room(len(buffer)))
        self._allowance.left -= len(data)
        buffer[: len(data)] = data
        return len(data)
