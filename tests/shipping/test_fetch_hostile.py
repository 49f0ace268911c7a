"""`fetch` against servers that want a device's memory or its time; each is told as what it is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import servers
from shipped import BASES, frame

from tinylora_edge import TransferError
from tinylora_edge.shipping import fetch

FRAME = frame(1, signer="crc32")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(FRAME), FRAME)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MOST_BYTES = 8 << 20
LONG = 60  # seconds that a server takes which takes its time: no busy machine is that slow


def flood(head: bytes, part: bytes) -> Callable[[socket.socket], None]:
    """Send a head, and then one part again and again for as long as it is taken."""
    many = part * (65536 // len(part) + 1)

    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(many)

    return send


def drip(head: bytes) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(10 * LONG):
            connection.sendall(b"x")
            time.sleep(0.1)

    return send


FLOODS = {
    "a body": flood(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "the body of a redirect": flood(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", b"x"),
    "the body of an error": flood(b"HTTP/1.1 503 Busy\r\n\r\n", b"x"),
    "a chunk of size -1": flood(CHUNKED + b"-1\r\n", b"x"),
    "a chunk of 10^30": flood(CHUNKED + b"f" * 25 + b"\r\n", b"x"),
    "chunks of one byte": flood(CHUNKED, b"00000000000000000001;" + b"e" * 9999 + b"\r\nx\r\n"),
    "a chunk size of any length": flood(CHUNKED, b"0"),
    "headers": flood(b"HTTP/1.1 200 OK\r\n", b"A: " + b"x" * 9999 + b"\r\n"),
    "answers of 100": flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "trailers": flood(CHUNKED + b"0\r\n", b"A: b\r\n"),
    "a status line": flood(b"HTTP/1.1 200 ", b"x"),
}

CLIENT = """
import json, resource, sys
from pathlib import Path
from shipped import BASES
from tinylora_edge import TransferError
from tinylora_edge.shipping import fetch

def peak():
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux lets a process begin with its parent's ru_maxrss.
    return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])

fetch(sys.argv[1], BASES)
for url in sys.argv[2:]:
    before = peak()
    try:
        fetch(url, BASES, deadline=3, attempts=2)
        why = ""
    except TransferError as error:
        why = str(error)
    print(json.dumps([peak() - before, why]), flush=True)
"""


def test_what_a_server_sends_without_end_costs_no_memory(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with ExitStack() as stack:
        urls = [stack.enter_context(servers.answering(reply))[0] for reply in (ANSWER, *FLOODS.values())]
        command = [sys.executable, "-c", CLIENT, *urls]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for name, line in zip(FLOODS, done.stdout.splitlines(), strict=True):
        grown, why = json.loads(line)
        assert grown < MOST_BYTES, f"{name}: {grown:,} bytes more"
        assert why, name


@pytest.mark.parametrize("name", ["a body", "a chunk of size -1", "headers", "answers of 100", "trailers"])
def test_a_flood_is_not_tried_again(name):
    with servers.answering(FLOODS[name]) as (url, requests), pytest.raises(TransferError, match="more than"):
        fetch(url, BASES)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("scheme", "slow"),
    [
        ("http", drip(b"")),
        ("http", drip(b"HTTP/1.1 200 OK\r\nA: ")),
        ("http", drip(b"HTTP/1.1 200 OK\r\n\r\n")),
        ("http", lambda _: time.sleep(LONG)),
        ("https", drip(b"\x16\x03\x03\x40\x00")),
    ],
    ids=["status", "header", "body", "silence", "handshake"],
)
def test_a_drip_ends_with_the_deadline(scheme, slow):
    with servers.listening(lambda connection, _: slow(connection)) as port:
        started = time.monotonic()
        with pytest.raises(TransferError, match=r"within 1 s"):
            fetch(f"{scheme}://127.0.0.1:{port}", BASES, deadline=1)
        assert time.monotonic() - started < LONG / 2, "and nothing else ended it"


def test_silence_is_tried_again(monkeypatch):
    monkeypatch.setattr(sys.modules["tinylora_edge.shipping.fetch"], "_IDLE_S", 0.5)
    with servers.answering(lambda connection: connection.recv(1), ANSWER) as (url, _):
        assert fetch(url, BASES).data == FRAME


@pytest.mark.parametrize(
    "garbage",
    [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/9.9 nine\r\n\r\n", bytes(999),
     b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n",
     b"HTTP/1.1 200 OK\r\nA: " + b"x" * 65_540 + b"\r\n\r\n"],
    ids=["nothing", "another protocol", "another version", "zeros", "many headers", "a long header"],
)  # fmt: skip
def test_what_is_no_http(garbage):
    with servers.answering(garbage) as (url, requests), pytest.raises(TransferError, match="2 attempts"):
        fetch(url, BASES, attempts=2)
    assert len(requests) == 2


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 404 \x1b[2J\x07", b"\x1b[2J\x1b]0;x\x07", b"HTTP/1.1 503 \x1b[31m\x9b2J"]
)
def test_what_it_says_commands_no_terminal(line):
    reply, refused = line + b"\r\nContent-Length: 0\r\n\r\n", pytest.raises(TransferError, match=r"\\x1b")
    with servers.answering(reply) as (url, _), refused as caught:
        fetch(url, BASES, attempts=1)
    assert str(caught.value).isprintable()
