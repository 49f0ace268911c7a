"""Tags: the last bytes of a frame, by which a device checks it.

Ed25519 keys are in PEM, as OpenSSL writes them (RFC 8410); the package `cryptography` reads and uses them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from typing import Any, TypeAlias

from ..errors import MissingExtraError, SignatureError
from ..limits import PEM_BYTES

CRC32, HMAC, ED25519 = 0, 1, 2  # kinds of tag, as the frame's first byte has them
SIZES = {CRC32: 4, HMAC: 8, ED25519: 64}  # bytes
NAMES = {CRC32: "CRC-32", HMAC: "HMAC", ED25519: "Ed25519"}

_PEM_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_HMAC_KEY_BYTES = 16  # bytes of a key at least


class Crc32:
    """A checksum, which detects damage but proves nothing about the sender."""

    kind = CRC32

    def sign(self, message: bytes) -> bytes:
        """Return the CRC-32 (IEEE 802.3) of the message, 4 bytes, little-endian."""
        return zlib.crc32(message).to_bytes(4, "little")


class Hmac:
    """HMAC-SHA-256 (RFC 2104) cut to 8 bytes: anyone who has the key can both make and check frames.

    Args:
        key: the shared secret, at least 16 bytes.

    Attributes:
        id: `hmac:` and 16 hexadecimal digits, derived from the key, that do not reveal it.

    SignatureError: the key is shorter.
    """

    kind = HMAC

    def __init__(self, key: bytes) -> None:
        if len(key) < _HMAC_KEY_BYTES:
            raise SignatureError(
                f"a MAC key of {len(key)} bytes is too short: use at least {_HMAC_KEY_BYTES}"
            )
        self._key = bytes(key)
        # No frame's message is this short, so the id, which anybody may see, is never a tag.
        self.id = f"hmac:{hmac.digest(self._key, b'tinylora key id', hashlib.sha256)[:8].hex()}"

    @classmethod
    def from_hex(cls, text: str | bytes) -> Hmac:
        """Return the key that hexadecimal digits spell. SignatureError: other characters, or too few."""
        digits = "".join((text.decode("ascii", "replace") if isinstance(text, bytes) else text).split())
        if len(text) > PEM_BYTES or not re.fullmatch("(?:[0-9a-fA-F]{2})+", digits):
            raise SignatureError(
                f"a MAC key is an even number of hexadecimal digits, {PEM_BYTES:,} characters at most, and "
                f"this has {len(text):,} and begins with {digits[:5]!r}"
            )
        return cls(bytes.fromhex(digits))

    def sign(self, message: bytes) -> bytes:
        """Return the first 8 bytes of HMAC-SHA-256 of the message."""
        return hmac.digest(self._key, message, hashlib.sha256)[: SIZES[HMAC]]

    def verify(self, message: bytes, tag: bytes) -> bool:
        """Tell, in constant time, whether `tag` is the message's MAC."""
        return hmac.compare_digest(self.sign(message), tag)


class Ed25519Signer:
    """Signs with Ed25519 (RFC 8032) under a private key, a seed of 32 bytes.

    Attributes:
        public_key: the 32 bytes that devices need.
        id: that of the `Ed25519Verifier` of its public key.

    MissingExtraError: `cryptography` is not installed. SignatureError: the key is not 32 bytes.
    """

    kind = ED25519

    def __init__(self, private_key: bytes) -> None:
        ed25519 = _cryptography()
        if len(private_key) != 32:
            raise SignatureError(f"an Ed25519 private key has 32 bytes, not {len(private_key)}")
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(private_key)
        self.public_key: bytes = self._key.public_key().public_bytes_raw()
        self.id = _public_key_id(self.public_key)

    @classmethod
    def from_pem(cls, text: str | bytes) -> Ed25519Signer:
        """Return the signer of an unencrypted private key in PEM (PKCS #8). SignatureError: the text has
        none."""
        return cls(_read_pem(text, "PRIVATE KEY").private_bytes_raw())

    def pem(self) -> tuple[str, str]:
        """Return the private key in PEM (PKCS #8), and the public one (SubjectPublicKeyInfo)."""
        from cryptography.hazmat.primitives import serialization as to

        private: bytes = self._key.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, to.NoEncryption())
        public: bytes = self._key.public_key().public_bytes(
            to.Encoding.PEM, to.PublicFormat.SubjectPublicKeyInfo
        )
        return private.decode(), public.decode()

    def sign(self, message: bytes) -> bytes:
        """Return the signature of the message, 64 bytes."""
        signature: bytes = self._key.sign(message)
        return signature


class Ed25519Verifier:
    """A public key of 32 bytes that checks Ed25519 signatures.

    Attributes:
        id: `ed25519:` and the first 16 hexadecimal digits of the public key's SHA-256.

    MissingExtraError: `cryptography` is not installed. SignatureError: the key is not 32 bytes.
    """

    kind = ED25519

    def __init__(self, public_key: bytes) -> None:
        if len(public_key) != 32:
            raise SignatureError(f"an Ed25519 public key has 32 bytes, not {len(public_key)}")
        _cryptography()
        self._public_key = bytes(public_key)
        self.id = _public_key_id(self._public_key)

    @classmethod
    def from_pem(cls, text: str | bytes) -> Ed25519Verifier:
        """Return the verifier of a public key in PEM. SignatureError: the text has none."""
        return cls(_read_pem(text, "PUBLIC KEY").public_bytes_raw())

    def verify(self, message: bytes, tag: bytes) -> bool:
        """Tell whether `tag` is a signature of the message under the public key."""
        from cryptography.exceptions import InvalidSignature

        try:
            _cryptography().Ed25519PublicKey.from_public_bytes(self._public_key).verify(tag, message)
        except InvalidSignature:
            return False
        return True


def _public_key_id(public_key: bytes) -> str:
    return f"ed25519:{hashlib.sha256(public_key).digest()[:8].hex()}"


def _cryptography() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingExtraError("an Ed25519 signature", "cryptography", "sign") from None
    return ed25519


def _read_pem(text: str | bytes, label: str) -> Any:
    """Return the Ed25519 key in a PEM block with a label; SignatureError where the text holds no such key."""
    ed25519 = _cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    data = text.encode("ascii", "replace") if isinstance(text, str) else bytes(text)
    if len(data) > PEM_BYTES:
        raise SignatureError(f"the key has {len(data)} bytes, and one in PEM at most {PEM_BYTES}")
    labels = [found.decode() for found in _PEM_LABEL.findall(data)]
    if labels != [label]:
        raise SignatureError(
            f"expected one {label} in PEM, but found {' and '.join(labels) or 'none'}: a PRIVATE KEY signs, "
            "the PUBLIC KEY beside it, KEY.pub, verifies. Decrypt an ENCRYPTED one first: openssl pkey"
        )
    try:
        key = load_pem_public_key(data) if label == "PUBLIC KEY" else load_pem_private_key(data, None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"the {label} is damaged: {error}") from None
    if not isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        raise SignatureError(f"the {label} is of another algorithm: expected an Ed25519 key")
    return key


# Each checks or makes tags of one `kind`. An `id` names a key in errors and states.
Verifier: TypeAlias = Hmac | Ed25519Verifier
Signer: TypeAlias = Crc32 | Hmac | Ed25519Signer
