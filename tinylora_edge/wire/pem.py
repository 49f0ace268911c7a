"""Ed25519 keys in PEM, as OpenSSL and every other tool writes them (RFC 7468, RFC 8410).

The DER inside has no variable part but the key, so reading it needs no ASN.1 library: a device that brings
its own Ed25519 reads its trusted keys without the `cryptography` package.
"""

from __future__ import annotations

import base64
import re

from ..errors import SignatureError
from ..limits import PEM_BYTES

PRIVATE, PUBLIC = "PRIVATE KEY", "PUBLIC KEY"
"""Labels of the two blocks."""

_OID = bytes.fromhex("06032b6570")  # 1.3.101.112, id-Ed25519
# PrivateKeyInfo: SEQUENCE { version 0, algorithm, OCTET STRING { OCTET STRING { seed } } }
_PRIVATE_HEAD = bytes.fromhex("302e020100") + b"\x30\x05" + _OID + bytes.fromhex("04220420")
# SubjectPublicKeyInfo: SEQUENCE { algorithm, BIT STRING { no unused bits, key } }
_PUBLIC_HEAD = bytes.fromhex("302a") + b"\x30\x05" + _OID + bytes.fromhex("032100")
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\s(.*?)-----END \1-----", re.S)


def encode_private(seed: bytes) -> str:
    """Return the PEM of a private key, whose seed has 32 bytes."""
    return _encode(PRIVATE, _PRIVATE_HEAD + seed)


def encode_public(key: bytes) -> str:
    """Return the PEM of a public key of 32 bytes."""
    return _encode(PUBLIC, _PUBLIC_HEAD + key)


def decode_private(text: str | bytes) -> bytes:
    """Return the 32-byte seed of a private key.

    Raises:
        SignatureError: the text holds no Ed25519 private key, or an encrypted one.
    """
    return _decode(text, PRIVATE, _PRIVATE_HEAD)


def decode_public(text: str | bytes) -> bytes:
    """Return the 32 bytes of a public key.

    Raises:
        SignatureError: the text holds no Ed25519 public key.
    """
    return _decode(text, PUBLIC, _PUBLIC_HEAD)


def _encode(label: str, der: bytes) -> str:
    return f"-----BEGIN {label}-----\n{base64.b64encode(der).decode()}\n-----END {label}-----\n"


def _decode(text: str | bytes, label: str, head: bytes) -> bytes:
    if len(text) > PEM_BYTES:
        raise SignatureError(f"the key has {len(text)} bytes, and one in PEM at most {PEM_BYTES}")
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    blocks = _BLOCK.findall(text)
    if len(blocks) != 1:
        raise SignatureError(
            f"expected one block '-----BEGIN {label}-----', but found {len(blocks)} blocks of PEM: pass a "
            "file that tinylora-edge keygen or openssl wrote"
        )
    (found, body) = blocks[0]
    if found != label:
        hint = {
            "ENCRYPTED PRIVATE KEY": "decrypt it first: openssl pkey -in KEY -out PLAIN",
            PRIVATE: "this signs; devices and verify take the public one, KEY.pub",
            PUBLIC: "this verifies; to sign takes the private one, without .pub",
        }.get(found, f"expected a {label}")
        raise SignatureError(f"the file holds a {found}, not a {label}: {hint}")
    try:
        der = base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:  # binascii.Error, or a character that is not ASCII
        raise SignatureError(f"the {label} is damaged: {error}") from None
    if len(der) != len(head) + 32 or not der.startswith(head):
        what = "damaged, or in a form that OpenSSL does not write" if _OID in der else "of another algorithm"
        raise SignatureError(
            f"the {label} is {what}: expected an Ed25519 key of {len(head) + 32} bytes in DER, got {len(der)}"
        )
    return der[len(head) :]
