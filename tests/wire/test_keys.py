"""Keys as text: PEM that OpenSSL reads and writes, hexadecimal MAC keys, ids."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519

from tinylora_edge import Ed25519Signer, Ed25519Verifier, Hmac, SignatureError
from tinylora_edge.wire.tags import PRIVATE, PUBLIC, key_id, private_pem, public_pem, read_pem

SEED = bytes(range(32))
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(SEED)
RAW_PUBLIC = KEY.public_key().public_bytes_raw()
# RFC 8410, section 10.
RFC_PUBLIC = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""
RFC_PRIVATE = """-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
"""


def pem(key, *, password: bytes | None = None) -> bytes:
    if hasattr(key, "public_key"):
        closed = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, closed)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_pem_is_openssl_s_both_ways():
    assert private_pem(SEED).encode() == pem(KEY)
    assert public_pem(RAW_PUBLIC).encode() == pem(KEY.public_key())
    assert read_pem(pem(KEY), PRIVATE) == SEED
    assert read_pem(pem(KEY.public_key()), PUBLIC) == RAW_PUBLIC


def test_the_keys_of_rfc_8410():
    assert Ed25519Signer.from_pem(RFC_PRIVATE).public_key == read_pem(RFC_PUBLIC, PUBLIC)


@pytest.mark.parametrize(
    "edit", [str.strip, lambda t: t.replace("\n", "\r\n"), lambda t: f"note\n\n{t}\nnote"]
)
def test_what_mail_and_editors_do_to_it_is_forgiven(edit):
    assert read_pem(edit(RFC_PUBLIC), PUBLIC) == read_pem(RFC_PUBLIC, PUBLIC)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "found 0 blocks"),
        (b"\xff\xfe\x00", "found 0 blocks"),
        (RFC_PUBLIC + RFC_PUBLIC, "found 2 blocks"),
        (RFC_PRIVATE, "PRIVATE KEY, not a PUBLIC KEY: this signs"),
        (pem(ec.generate_private_key(ec.SECP256R1()).public_key()), "of another algorithm"),
        (pem(x25519.X25519PrivateKey.generate().public_key()), "of another algorithm"),
        (RFC_PUBLIC.replace("MCow", "MCo*"), "damaged"),
        (RFC_PUBLIC.replace("ZuE=", ""), "damaged"),
        (b"-" * 5000, "5000 bytes"),
    ],
)
def test_what_is_no_public_key(text, said):
    with pytest.raises(SignatureError, match=said):
        Ed25519Verifier.from_pem(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RFC_PUBLIC, "PUBLIC KEY, not a PRIVATE KEY: this verifies"),
        (pem(KEY, password=b"secret"), "decrypt it first: openssl pkey"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "of another algorithm"),
    ],
)
def test_what_is_no_private_key(text, said):
    with pytest.raises(SignatureError, match=said):
        Ed25519Signer.from_pem(text)


def test_hexadecimal_mac_keys():
    message = b"message"
    expected = Hmac(SEED).sign(message)
    for text in (SEED.hex(), SEED.hex().upper().encode(), f"  {SEED.hex(' ')}\n"):
        assert Hmac.from_hex(text).sign(message) == expected
    for text, said in (
        ("abc", "even number"),
        ("", "even number"),
        ("zz" * 16, "'zzzzz'"),
        ("ab" * 15, "15 bytes"),
    ):
        with pytest.raises(SignatureError, match=said):
            Hmac.from_hex(text)


def test_ids_name_the_key_and_do_not_give_it_away():
    assert Ed25519Signer(SEED).id == Ed25519Verifier(RAW_PUBLIC).id
    assert Ed25519Verifier(RAW_PUBLIC).id == f"ed25519:{hashlib.sha256(RAW_PUBLIC).hexdigest()[:16]}"
    assert Hmac(SEED).id != Hmac(SEED[::-1]).id
    assert SEED.hex()[:8] not in Hmac(SEED).id
    assert Hmac(SEED).id.removeprefix("hmac:") != Hmac(SEED).sign(b"").hex()


def test_a_verifier_without_an_id_is_named_by_its_kind():
    class Own:
        kind = 2

        def verify(self, message: bytes, tag: bytes) -> bool:
            return False

    assert key_id(Own()) == "ed25519:unnamed"


def test_a_body_with_other_characters_is_refused():
    """And not read without them, as a lenient decoder does."""
    text = public_pem(bytes(range(32)))
    head, body, rest = text.split("\n", 2)
    with pytest.raises(SignatureError):
        read_pem(f"{head}\n{body[:8]}!{body[8:]}\n{rest}", PUBLIC)
