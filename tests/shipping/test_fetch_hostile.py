"""`fetch` against servers and proxies that want a device's memory, its time, or its inner network."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import servers
import support

from tinylora_edge import MicroVector, TransferError
from tinylora_edge.shipping import _exchange, fetch
from tinylora_edge.shipping._addresses import Reach, reach

BASIS = support.random_basis(blocks=5, groups=13)
FRAME = MicroVector.random(BASIS, 0.3, dtype="bf16").to_bytes(BASIS)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(FRAME), FRAME)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MOST_BYTES = 8 << 20


def moved(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def flood(head: bytes, part: bytes) -> Callable[[socket.socket], None]:
    """Send a head, and then one part again and again for as long as it is taken."""
    many = part * (65536 // len(part) + 1)

    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(many)

    return send


def drip(head: bytes) -> Callable[[socket.socket], None]:
    """Send a head, and then a byte now and then."""

    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"x")
            time.sleep(0.1)

    return send


FLOODS = {
    "the body of a redirect to itself": flood(moved("/x").replace(b"Content-Length: 0\r\n", b""), b"x"),
    "the body of a long redirect": flood(moved("/x").replace(b"th: 0", b"th: 400000000"), b"x"),
    "a chunk of size -1": flood(CHUNKED + b"-1\r\n", b"x"),
    "a chunk of size -2 in a redirect": flood(
        moved("/x").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"-2\r\n", b"x"
    ),
    "a chunk of 10^30": flood(CHUNKED + b"f" * 25 + b"\r\n", b"x"),
    "chunks of one byte": flood(CHUNKED, b"00000000000000000001;" + b"e" * 9999 + b"\r\nx\r\n"),
    "a chunk size of any length": flood(CHUNKED, b"0"),
    "headers": flood(b"HTTP/1.1 200 OK\r\n", b"A: " + b"x" * 9999 + b"\r\n"),
    "answers of 100": flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "trailers": flood(CHUNKED + b"0\r\n", b"A: b\r\n"),
    "a status line": flood(b"HTTP/1.1 200 ", b"x"),
    "the body of an error": flood(b"HTTP/1.1 503 Busy\r\n\r\n", b"x"),
}

CLIENT = textwrap.dedent(
    """
    import json, resource, sys, time
    from pathlib import Path
    import support
    from tinylora_edge import TransferError
    from tinylora_edge.shipping import fetch

    basis = support.random_basis(blocks=5, groups=13)

    def peak():
        status = Path("/proc/self/status")
        if not status.exists():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # Linux lets a process begin with its parent's ru_maxrss.
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])

    fetch(sys.argv[1], basis)
    for url in sys.argv[2:]:
        before, started = peak(), time.monotonic()
        try:
            fetch(url, basis, deadline=3, attempts=2)
            why = ""
        except TransferError as error:
            why = str(error)
        print(json.dumps([peak() - before, time.monotonic() - started, why]), flush=True)
    """
)


def run_client(*urls: str) -> list[tuple[int, float, str]]:
    """Fetch in a process of its own; return for each address peak memory, seconds, and the error."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *urls],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_what_a_server_sends_without_end_costs_no_memory(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    with ExitStack() as stack:
        good, _ = stack.enter_context(servers.answering(ANSWER))
        urls = [stack.enter_context(servers.answering(attack))[0] for attack in FLOODS.values()]
        results = run_client(good, *urls)
    assert len(results) == len(FLOODS)
    for name, (grown, _, why) in zip(FLOODS, results, strict=True):
        assert grown < MOST_BYTES, f"{name}: {grown:,} bytes more"
        assert why, name


@pytest.mark.parametrize("name", ["a chunk of size -1", "headers", "answers of 100", "trailers"])
def test_a_flood_is_not_asked_for_again(name):
    with servers.answering(FLOODS[name]) as (url, requests), pytest.raises(TransferError, match=url):
        fetch(url, BASIS)
    assert len(requests) == 1


def test_the_body_of_a_redirect_is_not_read():
    with (
        servers.answering(ANSWER) as (there, _),
        servers.answering(flood(moved(there).replace(b"th: 0", b"th: 400000000"), b"x")) as (url, _),
    ):
        assert fetch(url, BASIS).data == FRAME


class TestProxies:
    @pytest.fixture
    def through(self, monkeypatch):
        """Name a proxy in the environment."""
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)

        def name_it(scheme: str, url: str) -> None:
            monkeypatch.setenv(f"{scheme}_proxy", url)

        return name_it

    def test_http_goes_through_with_the_proxy_s_user(self, through):
        with servers.answering(ANSWER) as (proxy, requests):
            through("http", proxy.replace("//", "//me:p%40ss@"))
            assert fetch("http://vectors.example/v", BASIS).data == FRAME
        first, *rest = requests[0].decode().split("\r\n")
        assert first == f"GET http://vectors.example/v/{BASIS.id}/default/latest HTTP/1.1"
        assert "Proxy-Authorization: Basic bWU6cEBzcw==" in rest
        assert "Host: vectors.example" in rest

    def test_hosts_of_no_proxy_go_past_it(self, through, monkeypatch):
        with servers.answering(ANSWER) as (url, requests):
            through("http", "http://127.0.0.1:1")
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            assert fetch(url, BASIS).data == FRAME
        assert requests[0].startswith(b"GET /")

    @pytest.mark.parametrize("proxy", ["socks5://h:1", "http://", "http://h:x"])
    def test_what_is_no_proxy(self, through, proxy):
        through("http", proxy)
        with pytest.raises(TransferError, match="as a proxy"):
            fetch("http://vectors.example", BASIS)

    def test_a_proxy_that_refuses(self, through):
        with servers.answering(b"HTTP/1.1 407 Who\r\n\r\n") as (proxy, requests):
            through("https", proxy)
            with pytest.raises(TransferError, match=r"no connection .the proxy answered 407 Who"):
                fetch("https://vectors.example:8443", BASIS, attempts=1)
        assert requests[0].startswith(
            b"CONNECT vectors.example:8443 HTTP/1.1\r\nHost: vectors.example:8443\r\n"
        )

    @pytest.mark.parametrize(
        "slow",
        [drip(b""), drip(b"HTTP/1.1 200 OK\r\nA: "), drip(b"HTTP/1.1 200 OK\r\n\r\n"), lambda c: c.recv(1)],
        ids=["status", "header", "handshake", "silence"],
    )
    def test_the_deadline_covers_connect_and_the_handshake(self, through, slow):
        with servers.answering(slow) as (proxy, _):
            through("https", proxy)
            started = time.monotonic()
            with pytest.raises(TransferError, match=r"within 1 s"):
                fetch("https://vectors.example", BASIS, deadline=1)
            assert time.monotonic() - started < 5

    @pytest.mark.parametrize("part", [b"HTTP/1.1 100 C\r\n\r\n", b"A: " + b"x" * 9999 + b"\r\n"])
    def test_an_endless_answer_to_connect(self, through, part):
        with servers.answering(flood(b"", part)) as (proxy, requests):
            through("https", proxy)
            with pytest.raises(TransferError):
                fetch("https://vectors.example", BASIS, attempts=1)
        assert len(requests) == 1

    @pytest.mark.parametrize("inside", ["http://169.254.169.254/x", "http://localhost/x", "http://[::1]/x"])
    def test_it_is_not_led_inside(self, through, inside):
        with servers.answering(moved(inside), ANSWER) as (proxy, requests):
            through("http", proxy)
            with pytest.raises(TransferError, match="redirect leads to"):
                fetch("http://93.184.216.34/v", BASIS)
        assert len(requests) == 1


class TestNames:
    def test_the_deadline_covers_a_name_that_is_not_resolved(self, monkeypatch):
        ended = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(30))
        started = time.monotonic()
        with pytest.raises(TransferError, match=r"within 0\.5 s.*not resolved in time"):
            fetch("http://vectors.example", BASIS, deadline=0.5)
        assert time.monotonic() - started < 5
        ended.set()

    @pytest.mark.parametrize("host", ["a..b", "x" * 70, "nothing.invalid"])
    def test_a_name_that_is_none(self, host):
        with pytest.raises(TransferError, match="no connection"):
            fetch(f"http://{host}", BASIS, attempts=1)

    @pytest.mark.parametrize("url", ["http://me:secret@127.0.0.1/v", "http://127.0.0.1:99999", "http://a b/"])
    def test_addresses_that_are_none(self, url):
        with pytest.raises(TransferError, match="is no http or https address"):
            fetch(url, BASIS)


class TestInside:
    """A second address of the loopback stands for a public server; everything else is as it is."""

    @pytest.fixture(autouse=True)
    def _public(self, monkeypatch):
        monkeypatch.setattr(
            _exchange, "reach", lambda address: Reach.PUBLIC if address == "127.0.0.2" else reach(address)
        )

    @pytest.fixture
    def outside(self):
        """Serve answers at the address that counts as public."""

        def serve(*answers: bytes):
            requests: list[bytes] = []
            listener = socket.create_server(("127.0.0.2", 0))

            def accept() -> None:
                for answer in answers:
                    connection, _ = listener.accept()
                    with connection:
                        requests.append(connection.recv(4096))
                        connection.sendall(answer)

            threading.Thread(target=accept, daemon=True).start()
            opened.append(listener)
            return f"http://127.0.0.2:{listener.getsockname()[1]}", requests

        opened: list[socket.socket] = []
        yield serve
        for listener in opened:
            listener.close()

    def test_a_redirect_from_outside_is_refused(self, outside):
        with servers.answering(ANSWER) as (inner, asked):
            url, _ = outside(moved(f"{inner}/x"))
            with pytest.raises(
                TransferError, match=r"leads to 127\.0\.0\.1, an address of this device"
            ) as caught:
                fetch(url, BASIS)
            assert "--allow-private" in str(caught.value)
        assert asked == []

    def test_unless_it_is_allowed(self, outside):
        with servers.answering(ANSWER) as (inner, _):
            url, _ = outside(moved(f"{inner}/x"))
            assert fetch(url, BASIS, allow_private=True).data == FRAME

    def test_outside_goes_on_outside(self, outside):
        url, _ = outside(moved("/x"), ANSWER)
        assert fetch(url, BASIS).data == FRAME

    def test_an_address_of_the_caller_s_own_may_be_inside(self):
        with servers.answering(moved("/x"), ANSWER) as (url, _):
            assert fetch(url, BASIS).data == FRAME

    def test_from_inside_it_may_lead_out_and_not_back(self, outside):
        with servers.answering(ANSWER) as (inner, asked):
            url, _ = outside(moved(f"{inner}/x"))
            with (
                servers.answering(moved(f"{url}/x")) as (first, _),
                pytest.raises(TransferError, match="leads"),
            ):
                fetch(first, BASIS)
        assert asked == []

    def test_a_name_that_turns_inside_once_it_was_looked_at(self, outside, monkeypatch):
        """Rebinding: one name, public when it is first asked for, and inside when it redirects to itself."""
        with servers.answering(ANSWER) as (inner, asked):
            port = int(inner.rpartition(":")[2])
            url, _ = outside(moved(f"http://turns.example:{port}/x"))
            outer = int(url.rpartition(":")[2])
            real = socket.getaddrinfo

            def turning(host, wanted, **options):
                places = {("turns.example", outer): "127.0.0.2", ("turns.example", port): "127.0.0.1"}
                return real(places.get((host, wanted), host), wanted, **options)

            monkeypatch.setattr(socket, "getaddrinfo", turning)
            with pytest.raises(TransferError, match=r"leads to 127\.0\.0\.1"):
                fetch(f"http://turns.example:{outer}", BASIS)
        assert asked == []

    def test_of_several_addresses_only_those_outside_are_taken(self, outside, monkeypatch):
        with servers.answering(ANSWER) as (inner, asked):
            port = int(inner.rpartition(":")[2])
            url, _ = outside(moved(f"http://both.example:{port}/x"))
            real = socket.getaddrinfo

            def both(host, wanted, **options):
                if host != "both.example":
                    return real(host, wanted, **options)
                return [*real("127.0.0.2", wanted, **options), *real("127.0.0.1", wanted, **options)]

            monkeypatch.setattr(socket, "getaddrinfo", both)
            with pytest.raises(TransferError):
                fetch(url, BASIS, attempts=1)
        assert asked == []
