"""`fetch` against a real server, a bad line, and servers that lie."""

from __future__ import annotations

import re
import socket
import sys
import time
from contextlib import suppress
from urllib.parse import unquote

import pytest
import servers
import support

from tinylora_edge import Ed25519Signer, MicroVector, TransferError
from tinylora_edge.shipping import Fetched, fetch, publish

BASIS = support.random_basis(blocks=5, groups=13)
SIGNER = Ed25519Signer(b"k" * 32)
LONGEST = 9 + 4 * 13 + 64


def frame(sequence: int, dtype: str = "bf16") -> bytes:
    drawn = MicroVector.random(BASIS, 0.3, seed=sequence, dtype=dtype)
    return MicroVector(drawn.values, dtype, sequence).to_bytes(BASIS, SIGNER)


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def sent(request: bytes) -> dict[str, str]:
    """Headers of a request, by their names in lower case."""
    lines = request.decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    module = sys.modules["tinylora_edge.shipping.fetch"]  # the face has a function of its name
    monkeypatch.setattr(module, "_BACKOFF_S", 0.01)


class TestHonest:
    def test_the_newest_and_then_nothing_until_there_is_more(self, tmp_path):
        with servers.static(tmp_path) as (url, seen):
            publish(frame(1), BASIS, str(tmp_path))
            first = fetch(url, BASIS)
            assert first == Fetched(frame(1), first.etag, 1)
            assert fetch(url, BASIS, etag=first.etag) == Fetched(None, first.etag, 1)
            publish(frame(2, "fp32"), BASIS, str(tmp_path))
            second = fetch(f"{url}/", BASIS, etag=first.etag)
            assert second.data == frame(2, "fp32")
            assert second.etag != first.etag
        path = f"/{BASIS.id}/default/latest"
        assert seen == [(path, None), (path, first.etag), (path, first.etag)]

    def test_streams(self, tmp_path):
        with servers.static(tmp_path) as (url, _):
            publish(frame(1), BASIS, str(tmp_path), stream="alice")
            publish(frame(2), BASIS, str(tmp_path), stream="bob")
            assert fetch(url, BASIS, "alice").data == frame(1)
            assert fetch(url, BASIS, "bob").data == frame(2)
            with pytest.raises(TransferError, match=r"404 Not Found: nothing is published"):
                fetch(url, BASIS)

    def test_a_server_without_etags(self):
        with servers.answering(answer(frame(1))) as (url, _):
            assert fetch(url, BASIS, etag='"old"') == Fetched(frame(1), None, 1)

    def test_chunked(self):
        body = frame(1)
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:50], body[50:])) + b"0\r\n\r\n"
        with servers.answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks) as (url, _):
            assert fetch(url, BASIS).data == body

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_redirects_to_another_origin_go_without_the_caller_s_headers(self, host):
        """Whatever they are called, they were meant for the first server; another port is another origin."""
        secrets = {"Authorization": "Bearer t", "X-Api-Key": "t", "Cookie": "id=t", "user-agent": "t"}
        with servers.answering(answer(frame(1))) as (there, asked):
            moved = answer(b"", f"Location: {there.replace('127.0.0.1', host)}/x", status="302 Found")
            with servers.answering(moved) as (url, first):
                assert fetch(url, BASIS, etag='"old"', headers=secrets).data == frame(1)
        assert sent(first[0]).items() >= {name.lower(): value for name, value in secrets.items()}.items()
        found = sent(asked[0])
        assert found.keys() == {"host", "connection", "user-agent", "accept-encoding", "if-none-match"}
        assert found["user-agent"].startswith("tinylora-edge/")
        assert found["if-none-match"] == '"old"', "the ETag is that server's own"

    def test_redirects_within_an_origin_keep_the_caller_s_headers(self):
        moved = answer(b"", "Location: /x", status="302 Found")
        with servers.answering(moved, answer(frame(1))) as (url, asked):
            assert fetch(url, BASIS, headers={"X-Api-Key": "t"}).data == frame(1)
        assert [sent(request)["x-api-key"] for request in asked] == ["t", "t"]

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://host/v",
            "file:///etc",
            "host/v",
            "http://",
            "https://h/v?x=1",
            "//h",
            "http://[::1/v",
            "http://h/\udcff",
        ],
    )
    def test_addresses_that_are_none(self, url):
        with pytest.raises(TransferError, match=re.escape(repr(url))):
            fetch(url, BASIS)

    @pytest.mark.parametrize("folder", ["Vektören 1", "Vekt%C3%B6ren%201", "~ann/a+b@c;d='e'(f)!"])
    def test_folders_of_any_name(self, tmp_path, folder):
        (tmp_path / unquote(folder)).mkdir(parents=True)
        with servers.static(tmp_path) as (url, seen):
            publish(frame(1), BASIS, str(tmp_path / unquote(folder)))
            got = fetch(f"{url}/{folder}/", BASIS)
        assert (got.data, got.attempts) == (frame(1), 1)
        assert unquote(seen[0][0]) == f"/{unquote(folder)}/{BASIS.id}/default/latest"
        assert seen[0][0].isascii()

    def test_redirects_to_folders_of_any_name(self):
        """Their bytes are kept, whatever characters they stand for."""
        moved = answer(b"", "Location: /Vektören 1/x", status="302 Found")
        with servers.answering(moved, answer(frame(1))) as (url, asked):
            assert fetch(url, BASIS).data == frame(1)
        assert asked[1].startswith(b"GET /Vekt%C3%B6ren%201/x HTTP/1.1\r\n")

    @pytest.mark.parametrize("stream", ["", "..", "a/b", ".x", "a b", "x" * 65, "é", "a\n"])
    def test_streams_that_are_not_safe_in_a_path(self, stream):
        with pytest.raises(TransferError, match="no name that is safe"):
            fetch("http://127.0.0.1:1", BASIS, stream)


class TestBadLine:
    def test_300_bits_a_second_that_break_twice(self, tmp_path):
        """The first connection breaks inside the request, the second inside the answer."""
        publish(frame(1), BASIS, str(tmp_path))
        started = time.monotonic()
        with (
            servers.static(tmp_path) as (server, _),
            servers.bad_line(server, 300, [60, 250]) as (url, connections, carried),
        ):
            got = fetch(url, BASIS, deadline=120)
            assert got.data == frame(1)
            assert got.attempts == len(connections) == 3
            taken = time.monotonic() - started
            assert taken >= 8 * carried[0] / 300 * 0.9, "the line was not slow"
            assert carried[0] < 1000, "a fetch costs a few hundred bytes, headers included"
            spent = carried[0]
            assert fetch(url, BASIS, etag=got.etag, deadline=120).data is None
            assert carried[0] - spent < 300, "and less where nothing is new"

    def test_one_that_always_breaks(self, tmp_path):
        publish(frame(1), BASIS, str(tmp_path))
        with (
            servers.static(tmp_path) as (server, _),
            servers.bad_line(server, 1e6, [250] * 9) as (url, connections, _),
            pytest.raises(
                TransferError, match=r"4 attempts; number 4: .*(broke off|reset|closed|Incomplete)"
            ),
        ):
            fetch(url, BASIS, attempts=4)
        assert len(connections) == 4

    def test_nobody_there(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(TransferError, match=r"2 attempts; number 2: no connection .*refused"):
            fetch(f"http://127.0.0.1:{port}", BASIS, attempts=2)


class TestBusy:
    @pytest.mark.parametrize(
        "status",
        [
            "500 Oops",
            "503 Busy",
            "429 Slow Down",
            "408 Late",
            "425 Early",
            "501 Not Yet",
            "507 Full",
            "520 Unknown",
            "522 Slow",
            "599 Lost",
        ],
    )
    def test_is_asked_again(self, status):
        with servers.answering(answer(b"", status=status), answer(frame(1))) as (url, requests):
            assert fetch(url, BASIS) == Fetched(frame(1), None, 2)
        assert len(requests) == 2

    def test_retry_after_is_kept(self):
        busy = answer(b"", "Retry-After: 1", status="503 Busy")
        with servers.answering(busy, answer(frame(1))) as (url, _):
            started = time.monotonic()
            assert fetch(url, BASIS).attempts == 2
            assert time.monotonic() - started >= 1

    def test_retry_after_beyond_the_deadline_ends_it(self):
        busy = answer(b"", "Retry-After: 9999", status="503 Busy")
        with servers.answering(busy) as (url, requests), pytest.raises(TransferError, match="503 Busy"):
            fetch(url, BASIS, deadline=30)
        assert len(requests) == 1

    @pytest.mark.parametrize("status", ["401 Who", "403 No", "410 Gone", "418 Teapot", "206 Partial Content"])
    def test_what_is_final(self, status):
        with (
            servers.answering(answer(b"", status=status)) as (url, requests),
            pytest.raises(TransferError, match=status.split()[0]),
        ):
            fetch(url, BASIS)
        assert len(requests) == 1


def endless(head: bytes, sent: list[int]):
    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        try:
            while True:
                connection.sendall(b"\x11" * 65536)
                sent[0] += 65536
        except OSError:
            sent.append(-1)

    return send


class TestLies:
    """What a server may not do to a device: fill its memory, hold it, or have it believe."""

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3b9aca00\r\n",
        ],
        ids=["without length", "a gigabyte", "one chunk of a gigabyte"],
    )
    def test_an_endless_body_is_cut_at_the_longest_frame(self, head):
        sent = [0]
        with (
            servers.answering(endless(head, sent)) as (url, requests),
            support.memory_limit(1 << 28),
            pytest.raises(TransferError, match=f"more than {LONGEST} bytes, the longest frame of this basis"),
        ):
            fetch(url, BASIS)
        for _ in range(100):
            if sent[-1] == -1:
                break
            time.sleep(0.05)
        assert sent[-1] == -1, "the connection was closed"
        assert sent[0] < 1 << 25, "and the rest never taken"
        assert len(requests) == 1

    def test_a_frame_of_the_longest_length_is_not_cut(self):
        assert len(frame(1, "fp32")) == LONGEST - 2, "it has no last day"
        with servers.answering(answer(frame(1, "fp32"))) as (url, _):
            assert fetch(url, BASIS).data == frame(1, "fp32")

    def test_fewer_bytes_than_announced_are_asked_for_again(self):
        short = answer(frame(1)[:40], length=97)
        with servers.answering(short, answer(frame(1))) as (url, _):
            assert fetch(url, BASIS) == Fetched(frame(1), None, 2)
        with servers.answering(short) as (url, _), pytest.raises(TransferError, match="broke off after 40"):
            fetch(url, BASIS, attempts=2)

    def test_more_bytes_than_announced_are_not_read(self):
        with servers.answering(answer(frame(1) + b"more" * 999, length=97)) as (url, _):
            assert fetch(url, BASIS).data == frame(1)

    @pytest.mark.parametrize("length", ["-5", "1e3", "x", "99999999999999999999999"])
    def test_a_length_that_is_none(self, length):
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode()
        with servers.answering(head + frame(1)) as (url, _), suppress(TransferError):
            assert fetch(url, BASIS, attempts=2).data == frame(1)

    @pytest.mark.parametrize("every", ["header", "body"])
    def test_a_drip_ends_with_the_deadline(self, every):
        head, body = answer(frame(1), "X-Padding: " + "x" * 2000).split(b"\r\n\r\n")
        ended = []

        def drip(connection: socket.socket) -> None:
            slow = head + b"\r\n\r\n" + body
            if every == "body":
                connection.sendall(head + b"\r\n\r\n")
                slow = body
            try:
                for byte in slow:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.1)
            except OSError:
                ended.append(True)

        with servers.answering(drip) as (url, _):
            started = time.monotonic()
            with pytest.raises(TransferError, match=r"within 1\.5 s"):
                fetch(url, BASIS, deadline=1.5, idle=1.0)
            assert time.monotonic() - started < 4

    def test_silence_ends_after_idle_and_is_tried_again(self):
        def silent(connection: socket.socket) -> None:
            connection.recv(1)

        with servers.answering(silent, answer(frame(1))) as (url, _):
            assert fetch(url, BASIS, idle=0.5).attempts == 2

    def test_a_304_that_nobody_asked_for(self):
        with (
            servers.answering(answer(b"", status="304 Not Modified")) as (url, _),
            pytest.raises(TransferError, match="304"),
        ):
            fetch(url, BASIS)

    @pytest.mark.parametrize("etag", ["x", '"' + "e" * 5000 + '"', '"a b"', '"\xe9"', '"a"\t"b"', ""])
    def test_an_etag_that_is_none_is_not_kept(self, etag):
        with servers.answering(
            answer(frame(1)).replace(b"\r\n\r\n", f"\r\nETag: {etag}\r\n\r\n".encode("latin-1"), 1)
        ) as (url, _):
            assert fetch(url, BASIS).etag is None

    @pytest.mark.parametrize("etag", ["x", '"a"\r\nX-Smuggled: 1', '"' + "e" * 5000 + '"'])
    def test_an_etag_that_is_none_is_not_sent(self, etag):
        with servers.answering(answer(frame(1))) as (url, requests):
            fetch(url, BASIS, etag=etag)
        assert b"None-Match" not in requests[0]
        assert b"Smuggled" not in requests[0]

    def test_the_same_etag_with_another_body_brings_the_body(self):
        with servers.answering(answer(frame(2), 'ETag: "same"')) as (url, _):
            assert fetch(url, BASIS, etag='"same"').data == frame(2)

    @pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://h/"])
    def test_redirects_to_what_is_no_web_server(self, target):
        moved = answer(b"", f"Location: {target}", status="302 Found")
        with servers.answering(moved) as (url, requests), pytest.raises(TransferError, match=r"redirect|302"):
            fetch(url, BASIS)
        assert len(requests) == 1

    def test_redirects_without_end(self):
        moved = answer(b"", "Location: /again", status="302 Found")
        with servers.answering(moved) as (url, requests), pytest.raises(TransferError, match="302"):
            fetch(url, BASIS)
        assert len(requests) <= 7

    def test_compression_that_nobody_asked_for(self):
        with (
            servers.answering(answer(frame(1), "Content-Encoding: gzip")) as (url, _),
            pytest.raises(TransferError, match="'gzip', which was not asked for"),
        ):
            fetch(url, BASIS)

    @pytest.mark.parametrize(
        "garbage",
        [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/9.9 nine\r\n\r\n",
         b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n",
         b"HTTP/1.1 200 OK\r\nA: " + b"x" * 99_999 + b"\r\n\r\n", bytes(999)],
        ids=["nothing", "another protocol", "another version", "many headers", "a long header", "zeros"],
    )  # fmt: skip
    def test_what_is_no_http(self, garbage):
        with servers.answering(garbage) as (url, requests), pytest.raises(TransferError, match="2 attempts"):
            fetch(url, BASIS, attempts=2)
        assert len(requests) == 2

    @pytest.mark.parametrize(
        "line", [b"HTTP/1.1 404 \x1b[2J\x07", b"\x1b[2J\x1b]0;x\x07", b"HTTP/1.1 503 \x1b[31m\x9b2J"]
    )
    def test_what_it_says_commands_no_terminal(self, line):
        with (
            servers.answering(line + b"\r\nContent-Length: 0\r\n\r\n") as (url, _),
            pytest.raises(TransferError, match=r"\\x1b") as caught,
        ):
            fetch(url, BASIS, attempts=1)
        assert str(caught.value).isprintable()
