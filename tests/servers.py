"""Servers on loopback: of any handler, of files, and one that lies."""

from __future__ import annotations

import hashlib
import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PORTS = itertools.count(random.randrange(12_000, 22_000))


def free_port() -> int:
    """A port for who takes it later, or again: below those that systems give to whoever asks for any."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", port := next(_PORTS))):
            return port


class Handler(SimpleHTTPRequestHandler):
    """A static file server with ETags, as any web server has them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        self.server.seen.append((self.path, self.headers.get("If-None-Match")))  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        data = path.read_bytes() if path.is_file() else b""
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        unchanged = self.headers.get("If-None-Match") == etag
        self.send_response_only(304 if unchanged else 200 if path.is_file() else 404)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data)))
        self.log_message()  # whoever has the whole answer finds its request in the list
        self.end_headers()
        if not unchanged:
            self.wfile.write(data)


@contextmanager
def running(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """Answer on a free port of loopback until the end."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextmanager
def static(root: Path) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Serve a directory; yield its address, and the requests that were answered: (path, If-None-Match)."""
    with running(partial(Handler, directory=str(root))) as server:
        server.seen = []  # type: ignore[attr-defined]
        yield f"http://127.0.0.1:{server.server_port}", server.seen  # type: ignore[attr-defined]


@contextmanager
def listening(serve: Callable[[socket.socket, int], None]) -> Iterator[int]:
    """Call serve(connection, its number) in a thread of its own for each connection; yield the port.

    Whatever a client that went away makes of the connection is its own affair.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError):
            serve(connection, number)

    def accept() -> None:
        with suppress(OSError):
            for number in itertools.count():
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection, number), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@contextmanager
def answering(*answers: bytes | Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """Answer request number i with answers[i] (the last one ever after): bytes as they are, or a function.

    Yields the address and the requests.
    """
    requests: list[bytes] = []

    def serve(connection: socket.socket, number: int) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            part = connection.recv(4096)
            if not part:
                return
            request += part
        requests.append(request)
        answer = answers[min(number, len(answers) - 1)]
        if callable(answer):
            answer(connection)
        else:
            connection.sendall(answer)

    with listening(serve) as port:
        yield f"http://127.0.0.1:{port}", requests
