"""Statements: their bytes, what their tags cover, and that none is taken for anything else."""

from __future__ import annotations

import hashlib
import json
import random
import struct

import numpy as np
import pytest
import support

from tinylora_edge import (
    BasisMismatchError,
    Crc32,
    Ed25519Signer,
    Ed25519Verifier,
    FrameError,
    Hmac,
    MicroVector,
    Policy,
    SignatureError,
    VectorError,
)
from tinylora_edge.wire.statements import (
    LATEST_BYTES,
    Latest,
    Receipt,
    decode_latest,
    decode_receipt,
    encode_latest,
    encode_receipt,
)

BASIS = support.random_basis(groups=3)
OTHER = support.random_basis(groups=3, seed=43)
MAC, SIGN = Hmac(b"k" * 32), Ed25519Signer(b"k" * 32)
KEYS = [MAC, Ed25519Verifier(SIGN.public_key)]
SAID = Latest(sequence=7, issued=330, until=360)
FRAME = MicroVector(np.array([[0.5], [0.25], [0]], np.float32), "int8", 7).to_bytes(
    BASIS, SIGN, stream="alice"
)
SHA256 = hashlib.sha256(FRAME).hexdigest()
GOLDEN = json.loads((support.GOLDEN / "statements.json").read_text("utf-8"))["statements"]


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: f"{entry['kind']}-{entry['auth']}")
def test_golden(entry):
    secret = bytes.fromhex(entry["key_hex"])
    key = Hmac(secret) if entry["auth"] == "hmac" else Ed25519Signer(secret)
    keys = [key] if isinstance(key, Hmac) else [Ed25519Verifier(key.public_key)]
    data, about = bytes.fromhex(entry["statement_hex"]), (entry["digest_hex"], entry["stream"])
    if entry["kind"] == "latest":
        said = Latest(entry["sequence"], entry["issued"], entry["until"])
        assert encode_latest(said, *about, key) == data
        assert decode_latest(data, *about, keys) == (said, key.id)
        return
    frame, challenge = bytes.fromhex(entry["frame_hex"]), bytes.fromhex(entry["challenge_hex"])
    sha256 = hashlib.sha256(frame).hexdigest()
    assert encode_receipt(entry["sequence"], sha256, *about, key, challenge) == data
    found = decode_receipt(data, *about, keys, challenge)
    assert (found.sequence, found.names(frame), found.names(frame + b"?")) == (entry["sequence"], True, False)


@pytest.mark.parametrize(("signer", "tag", "size"), [(MAC, "hmac", 19), (SIGN, "ed25519", 75)])
def test_a_latest_is_what_the_page_says(signer, tag, size):
    key = b"k" * 32 if tag == "hmac" else SIGN._key
    data = encode_latest(SAID, BASIS.digest, "alice", signer)
    rest = struct.pack("<HHH", 7, 330, 360)
    assert data == support.statement(BASIS.digest, 15, rest, tag=tag, key=key, stream="alice")
    assert len(data) == size <= LATEST_BYTES
    assert decode_latest(data, BASIS.digest, "alice", KEYS) == (SAID, signer.id)


@pytest.mark.parametrize("challenge", [b"", b"now", bytes(64)])
def test_a_receipt_is_what_the_page_says(challenge):
    data = encode_receipt(7, SHA256, BASIS.digest, "alice", MAC, challenge)
    rest = struct.pack("<H", 7) + bytes.fromhex(SHA256)[:8]
    written = {"tag": "hmac", "key": b"k" * 32, "stream": "alice", "challenge": challenge}
    assert data == support.statement(BASIS.digest, 14, rest, **written)
    assert len(data) == 23 <= 48, "it goes up every link that a frame comes down"
    found = decode_receipt(data, BASIS.digest, "alice", KEYS, challenge)
    assert found == Receipt(7, bytes.fromhex(SHA256)[:8])
    assert found.names(FRAME)


def statements() -> dict[str, bytes]:
    return {
        "latest, MAC": encode_latest(SAID, BASIS.digest, "alice", MAC),
        "latest, signature": encode_latest(SAID, BASIS.digest, "alice", SIGN),
        "receipt": encode_receipt(7, SHA256, BASIS.digest, "alice", MAC, b"now"),
    }


def read(
    name: str, data: bytes, stream: str = "alice", challenge: bytes = b"now", keys=KEYS, basis=BASIS
) -> object:
    if name == "receipt":
        return decode_receipt(data, basis.digest, stream, keys, challenge)
    return decode_latest(data, basis.digest, stream, keys)


@pytest.mark.parametrize("name", statements())
class TestRefused:
    def test_every_bit(self, name):
        data = statements()[name]
        read(name, data)
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(VectorError):
                read(name, bytes(flipped))

    def test_another_stream_basis_or_key(self, name):
        data = statements()[name]
        for stream in ("", "bob", "alice\n"):
            with pytest.raises(SignatureError, match="another stream"):
                read(name, data, stream)
        with pytest.raises(BasisMismatchError):
            read(name, data, basis=OTHER)
        same_name = support.with_digest(support.random_basis(groups=3), BASIS.digest[:8] + "0" * 56)
        with pytest.raises(SignatureError):
            read(name, data, basis=same_name)
        stranger = Ed25519Verifier(Ed25519Signer(bytes(32)).public_key)
        for keys in ([Hmac(b"s" * 32), stranger], []):
            with pytest.raises(SignatureError):
                read(name, data, keys=keys)

    def test_any_other_length(self, name):
        data = statements()[name]
        for other in (b"", data[:-1], data + b"?", data[:1], data * 2):
            with pytest.raises(FrameError):
                read(name, other)

    def test_what_is_something_else(self, name):
        others = [data for other, data in statements().items() if (other == "receipt") != (name == "receipt")]
        for other in (*others, FRAME, MicroVector.zeros(BASIS).to_bytes(BASIS, MAC, stream="alice")):
            with pytest.raises(FrameError):
                read(name, other)

    def test_it_is_no_vector(self, name):
        with pytest.raises(FrameError):
            Policy("none", keys=KEYS).check(statements()[name], BASIS, stream="alice")

    def test_random_bytes(self, name):
        rng = random.Random(0)
        first = statements()[name][:1]
        for _ in range(2000):
            data = rng.choice((first, b"")) + rng.randbytes(rng.choice((10, 18, 22, 74, rng.randrange(200))))
            with pytest.raises(VectorError):
                read(name, data)


def test_a_receipt_is_of_one_challenge():
    data = encode_receipt(7, SHA256, BASIS.digest, "", MAC, b"monday")
    for challenge in (b"", b"tuesday", b"monday\0"):
        with pytest.raises(SignatureError):
            decode_receipt(data, BASIS.digest, "", KEYS, challenge)


def test_tags_are_over_other_words_than_those_of_frames():
    """The bytes of one, with the tag that a key made for the other's message, verify nowhere."""
    body = statements()["receipt"][:15]
    message = hashlib.sha256(b"tinylora stream 2\nalice").digest() + bytes.fromhex(BASIS.digest) + body
    with pytest.raises(SignatureError):
        decode_receipt(body + MAC.sign(message), BASIS.digest, "alice", KEYS)


@pytest.mark.parametrize(
    "said", [Latest(7, 5, 4), Latest(7, -1, 4), Latest(7, 0, 65536), Latest(65536, 0, 1)]
)
def test_numbers_that_do_not_fit(said):
    with pytest.raises(FrameError):
        encode_latest(said, BASIS.digest, "", MAC)


def test_what_cannot_be_made():
    with pytest.raises(FrameError, match="no CRC-32 tag: pass a key for HMAC or Ed25519"):
        encode_latest(SAID, BASIS.digest, "", Crc32())
    with pytest.raises(FrameError, match="no Ed25519 tag: pass a key for HMAC"):
        encode_receipt(7, SHA256, BASIS.digest, "", SIGN)
    with pytest.raises(FrameError, match="at most 64 bytes, and this 65"):
        encode_receipt(7, SHA256, BASIS.digest, "", MAC, bytes(65))


def test_days_in_the_wrong_order_are_refused_even_signed():
    rest = struct.pack("<HHH", 7, 360, 330)
    data = support.statement(BASIS.digest, 15, rest, tag="hmac", key=b"k" * 32)
    with pytest.raises(FrameError, match="day 360 and ended before, on day 330"):
        decode_latest(data, BASIS.digest, "", KEYS)
