"""Tags and their keys: published test vectors, PEM, keys that are refused."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tinylora_edge import Ed25519Signer, Ed25519Verifier, Hmac, SignatureError

SEED = bytes(range(32))
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(SEED)
RAW_PUBLIC = KEY.public_key().public_bytes_raw()


def test_hmac():
    # RFC 4231, case 1.
    mac = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
    key, message = b"\x0b" * 20, b"Hi There"
    tag = Hmac(key).sign(message)
    assert tag.hex() == mac[:16]
    assert Hmac(key).verify(message, tag)
    assert not Hmac(key).verify(message + b"!", tag)
    assert not Hmac(key[:-1] + b"?").verify(message, tag)
    for wrong in (b"", tag[:7], tag + b"\0", bytes.fromhex(mac)):
        assert not Hmac(key).verify(message, wrong)


def test_a_public_key_that_is_no_point_verifies_nothing():
    assert not Ed25519Verifier(bytes(31) + b"\x02").verify(b"", bytes(64))


@pytest.mark.parametrize("make", [Hmac, Ed25519Signer, Ed25519Verifier])
def test_a_key_of_a_wrong_length(make):
    for length in (0, 8, 15) if make is Hmac else (0, 31, 33, 64):
        with pytest.raises(SignatureError, match=f"{length}"):
            make(bytes(length))


P256 = ec.generate_private_key(ec.SECP256R1())
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
    assert [text.encode() for text in Ed25519Signer(SEED).pem()] == [pem(KEY), pem(KEY.public_key())]
    assert Ed25519Signer.from_pem(pem(KEY)).sign(b"m") == KEY.sign(b"m")
    assert Ed25519Verifier.from_pem(pem(KEY.public_key())).id == Ed25519Verifier(RAW_PUBLIC).id


def test_the_keys_of_rfc_8410_and_what_mail_and_editors_do_to_them():
    known = Ed25519Signer.from_pem(RFC_PRIVATE).id
    stripped, windows = RFC_PUBLIC.strip(), RFC_PUBLIC.replace("\n", "\r\n")
    for text in (RFC_PUBLIC, stripped, windows, f"note\n\n{RFC_PUBLIC}\nnote"):
        assert Ed25519Verifier.from_pem(text).id == known


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (Ed25519Verifier.from_pem, b"", "found none"),
        (Ed25519Verifier.from_pem, RFC_PUBLIC + RFC_PUBLIC, "found PUBLIC KEY and PUBLIC KEY"),
        (Ed25519Verifier.from_pem, RFC_PRIVATE, "expected one PUBLIC KEY in PEM, but found PRIVATE KEY"),
        (Ed25519Verifier.from_pem, pem(P256.public_key()), "of another algorithm"),
        (Ed25519Verifier.from_pem, RFC_PUBLIC.replace("MCow", "MCo*"), "damaged"),
        (Ed25519Verifier.from_pem, b"-" * 5000, "5000 bytes"),
        (Ed25519Signer.from_pem, RFC_PUBLIC, "expected one PRIVATE KEY in PEM, but found PUBLIC KEY"),
        (Ed25519Signer.from_pem, pem(KEY, password=b"secret"), "Decrypt an ENCRYPTED one first"),
        *((Hmac.from_hex, text, "even number") for text in ("abc", "")),
        (Hmac.from_hex, "zz" * 16, "'zzzzz'"),
        (Hmac.from_hex, "ab" * 15, "15 bytes"),
        (Hmac.from_hex, "ab" * 2049, "4,096 characters at most, and this has 4,098"),
    ],
)
def test_what_is_no_key(read, text, message):
    with pytest.raises(SignatureError, match=message):
        read(text)


def test_hexadecimal_mac_keys():
    for text in (SEED.hex(), SEED.hex().upper().encode(), f"  {SEED.hex(' ')}\n"):
        assert Hmac.from_hex(text).sign(b"message") == Hmac(SEED).sign(b"message")
