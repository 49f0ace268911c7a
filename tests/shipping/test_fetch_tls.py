"""`fetch` over TLS: certificates are checked."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
import trustme
from shipped import BASES, answer, frame

from tinylora_edge import TransferError
from tinylora_edge.shipping import Fetched, fetch

FRAME = frame(1, signer="crc32")


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The file of the authority that signed the server's certificate."""
    return tmp_path / "authority.pem"


@pytest.fixture
def server(authority: Path) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers every request over TLS: its address and the requests that it read."""
    made = trustme.CA()
    made.cert_pem.write_to_path(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.issue_cert("127.0.0.1").configure_cert(context)
    requests: list[bytes] = []

    def serve(connection: socket.socket, number: int) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            requests.append(secure.recv(4096))
            secure.sendall(answer(FRAME, 'ETag: "one"'))

    with servers.listening(serve) as (port, _):
        yield f"https://127.0.0.1:{port}", requests


def test_a_frame(server, authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, requests = server
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    assert fetch(url, BASES, headers={"Authorization": "Bearer t"}) == Fetched(FRAME, '"one"')
    assert b"Bearer t" in requests[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_certificate_that_nobody_trusts_or_of_another_host(server, authority, monkeypatch, host) -> None:
    url, requests = server
    if host == "localhost":
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with pytest.raises(TransferError, match=r"(certificate|mismatch)") as failed:
        fetch(url.replace("127.0.0.1", host), BASES, headers={"Authorization": "Bearer t"})
    assert requests == []
    assert "attempts" not in str(failed.value)
