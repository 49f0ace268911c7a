"""`fetch` against a real server, a bad line, and over TLS."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import servers
import trustme
from shipped import BASES, answer, frame

from tinylora_edge import TransferError
from tinylora_edge.shipping import Fetched, fetch, publish


def test_the_newest_and_then_nothing_until_there_is_more(tmp_path):
    with servers.static(tmp_path) as (url, seen):
        publish(frame(1), BASES, str(tmp_path))
        first = fetch(url, BASES)
        assert first == Fetched(frame(1), first.etag)
        assert fetch(url, BASES, etag=first.etag) == Fetched(None, first.etag)
        publish(frame(2, "fp32"), BASES, str(tmp_path))
        second = fetch(f"{url}/", BASES, etag=first.etag)
        assert second.data == frame(2, "fp32")
        assert second.etag != first.etag
    path = f"/{BASES.id}/default/latest"
    assert seen == [(path, None), (path, first.etag), (path, first.etag)]


def test_each_user_has_their_own(tmp_path):
    with servers.static(tmp_path) as (url, _):
        for sequence, user in enumerate(("alice", "bob"), 1):
            publish(frame(sequence), BASES, str(tmp_path), user=user)
            assert fetch(url, BASES, user).data == frame(sequence)
        with pytest.raises(TransferError, match=r"404 Not Found: nothing is published"):
            fetch(url, BASES)


def test_chunked_and_without_an_etag():
    body = frame(1)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:50], body[50:])) + b"0\r\n\r\n"
    with servers.answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks) as (url, _):
        assert fetch(url, BASES, etag='"old"') == Fetched(body, None)


@pytest.mark.parametrize("folder", ["Vektören 1", "Vekt%C3%B6ren%201", "~ann/a+b@c;d='e'(f)!"])
def test_folders_of_any_name(tmp_path, folder):
    (tmp_path / unquote(folder)).mkdir(parents=True)
    with servers.static(tmp_path) as (url, seen):
        publish(frame(1), BASES, str(tmp_path / unquote(folder)))
        assert fetch(f"{url}/{folder}/", BASES).data == frame(1)
    assert unquote(seen[0][0]) == f"/{unquote(folder)}/{BASES.id}/default/latest"
    assert seen[0][0].isascii()


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://host/v", "FTP://host/v", "host/v", "https://", "https://h/v?x=1", "//h", "https://[::1/v"),
        *("https://h/\udcff", "https://me:secret@h/v", "https://h:99999", "https://a b/", "https://é/v"),
    ],
)
def test_addresses_that_are_none(url):
    plain = url.replace("me:secret@", "").removesuffix("?x=1")  # nothing that may be a secret
    with pytest.raises(TransferError, match=re.escape(f"{plain!r} is not the address of a folder")):
        fetch(url, BASES)


@pytest.mark.parametrize("url", ["http://example.org/v", "http://192.168.0.1", "http://localhost.example"])
def test_http_is_for_this_device_alone(url):
    with pytest.raises(TransferError, match="publish over https"):
        fetch(url, BASES)


@pytest.mark.parametrize("user", ["", "..", "a/b", ".x", "a b", "x" * 65, "é", "a\n"])
def test_users_that_are_not_safe_in_a_path(user):
    with pytest.raises(TransferError, match="is not safe"):
        fetch("http://127.0.0.1:1", BASES, user)


@pytest.mark.parametrize(
    "url", ["https://a..b", f"https://{'x' * 70}", "https://nothing.invalid", "http://127.0.0.1:1"]
)
def test_nobody_there(url):
    with pytest.raises(TransferError, match="in 2 of 2 attempts"):
        fetch(url, BASES, attempts=2)
    with pytest.raises(TransferError, match="0 attempts are too few"):
        fetch(url, BASES, attempts=0)


SHORT = answer(frame(1)[:40], length=97)


@pytest.mark.parametrize(
    "first", [*(answer(b"", status=f"{status} Wait") for status in (500, 503, 429, 408, 425)), SHORT]
)
def test_a_server_that_is_busy_or_breaks_off_is_tried_again(first):
    with servers.answering(first, answer(frame(1))) as (url, requests):
        assert fetch(url, BASES).data == frame(1)
    assert len(requests) == 2
    if first is SHORT:
        with servers.answering(SHORT) as (url, _), pytest.raises(TransferError, match="broke off after 40"):
            fetch(url, BASES, attempts=2)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        *(
            (answer(b"", "Location: /x", status=status), rf"{status}.*redirects are not followed, .* to /x")
            for status in ("401 Who", "403 No", "404 Not Found", "304 Not Modified", "206 Part", "302 Found")
        ),
        (answer(frame(1), "Content-Encoding: gzip"), "compressed"),
    ],
)
def test_what_is_final(reply, message):
    with servers.answering(reply) as (url, requests), pytest.raises(TransferError, match=message):
        fetch(url, BASES)
    assert len(requests) == 1
    with servers.answering(reply) as (url, _), pytest.raises(TransferError, match=r"a line feed[^x]*$"):
        fetch(url, BASES, headers={"Authorization": "Bearer xxx\n"})


def test_more_bytes_than_announced_are_not_read():
    with servers.answering(answer(frame(1) + b"more" * 999, length=97)) as (url, _):
        assert fetch(url, BASES).data == frame(1)


@pytest.mark.parametrize("etag", ["x", '"' + "e" * 5000 + '"', '"a b"', '"\xe9"', '"a"\t"b"', ""])
def test_an_etag_that_is_none_is_neither_kept_nor_sent(etag):
    head = f"\r\nETag: {etag}\r\n\r\n".encode("latin-1")
    with servers.answering(answer(frame(1)).replace(b"\r\n\r\n", head, 1)) as (url, requests):
        assert fetch(url, BASES, etag=f"{etag}\r\nX-Smuggled: 1").etag is None
    assert b"None-Match" not in requests[0]
    assert b"Smuggled" not in requests[0]


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The file of the authority that signed the server's certificate."""
    return tmp_path / "authority.pem"


@pytest.fixture
def secure(authority: Path) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers every request over TLS: its address and the requests that it read."""
    made = trustme.CA()
    made.cert_pem.write_to_path(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.issue_cert("127.0.0.1").configure_cert(context)
    requests: list[bytes] = []

    def serve(connection: socket.socket, number: int) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            requests.append(encrypted.recv(4096))
            encrypted.sendall(answer(frame(1), 'ETag: "one"'))

    with servers.listening(serve) as port:
        yield f"https://127.0.0.1:{port}", requests


def test_a_certificate_that_is_trusted(secure, authority, monkeypatch):
    url, requests = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    assert fetch(url, BASES, headers={"Authorization": "Bearer t"}) == Fetched(frame(1), '"one"')
    assert b"Bearer t" in requests[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_certificate_that_nobody_trusts_or_of_another_host(secure, authority, monkeypatch, host):
    url, requests = secure
    if host == "localhost":
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with pytest.raises(TransferError, match=r"(certificate|mismatch)") as failed:
        fetch(url.replace("127.0.0.1", host), BASES, headers={"Authorization": "Bearer t"})
    assert requests == []
    assert "attempts" not in str(failed.value)
