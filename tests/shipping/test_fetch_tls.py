"""`fetch` over TLS: certificates are checked."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import servers
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from shipped import BASES, answer, frame

from tinylora_edge import TransferError
from tinylora_edge.shipping import Fetched, fetch

FRAME = frame(1, signer="crc32")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 with its key, signed by itself, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@contextmanager
def tls(certificate: Path, reply: Callable[[], bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Answer every request over TLS; yield the address and the requests that were read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    requests: list[bytes] = []

    def serve(connection: socket.socket, number: int) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            requests.append(secure.recv(4096))
            secure.sendall(reply())

    with servers.listening(serve) as (port, _):
        yield f"https://127.0.0.1:{port}", requests


def test_a_frame(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with tls(certificate, lambda: answer(FRAME, 'ETag: "one"')) as (url, requests):
        assert fetch(url, BASES, headers={"Authorization": "Bearer t"}) == Fetched(FRAME, '"one"')
    assert b"Bearer t" in requests[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_certificate_that_nobody_trusts_or_of_another_host(certificate: Path, monkeypatch, host) -> None:
    if host == "localhost":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with (
        tls(certificate, lambda: answer(FRAME)) as (url, requests),
        pytest.raises(TransferError, match=r"(certificate|mismatch)") as failed,
    ):
        fetch(url.replace("127.0.0.1", host), BASES, headers={"Authorization": "Bearer t"})
    assert requests == []
    assert "attempts" not in str(failed.value)
