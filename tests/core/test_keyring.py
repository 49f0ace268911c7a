"""Policy(keyring=FILE): the listed keys are trusted, each for its streams and days."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path

import pytest
import support

from tinylora_edge import Ed25519Signer, Hmac, MicroVector, Policy, SignatureError, TrustError, VectorError
from tinylora_edge.wire.tags import public_pem

BASIS = support.random_basis(groups=3)
FLEET, SPARE, STRANGER = (Ed25519Signer(letter * 32) for letter in (b"f", b"s", b"x"))
MAC = Hmac(b"k" * 32)


def frame(signer, stream: str = "", sequence: int = 1) -> bytes:
    return MicroVector(MicroVector.random(BASIS, 0.3).values, "fp32", sequence).to_bytes(
        BASIS, signer, stream=stream
    )


def line(signer: Ed25519Signer) -> str:
    return public_pem(signer.public_key).splitlines()[1]


def keyring(path: Path, *keys: dict) -> Path:
    path.write_text(json.dumps({"keys": keys}))
    return path


@pytest.fixture
def path(tmp_path):
    """FLEET for every stream; SPARE for some, in 2026 from March on."""
    days = {"first": "2026-03-01", "last": "2026-12-31"}
    return keyring(
        tmp_path / "keyring.json",
        {"key": line(FLEET)},
        {"key": line(SPARE), "streams": ["default", "alice", "eu-*"], **days},
    )


def test_a_listed_key_verifies_and_implies_a_signature(path):
    policy = Policy(keyring=path)
    assert policy.require == "signature"
    assert policy.check(frame(FLEET, "anybody"), BASIS, stream="anybody").verified_by == FLEET.id
    with pytest.raises(SignatureError, match="requires a signature, but this is a CRC-32 frame"):
        policy.check(frame("crc32"), BASIS)
    with pytest.raises(SignatureError, match="does not verify under any of the 2 trusted keys"):
        Policy(keyring=path, today=date(2026, 6, 1)).check(frame(STRANGER), BASIS)


def test_keys_that_were_given_count_too(path):
    policy = Policy(keyring=str(path), keys=[MAC])
    assert policy.require == "mac"
    assert policy.check(frame(MAC), BASIS).verified_by == MAC.id
    assert policy.check(frame(FLEET), BASIS).verified_by == FLEET.id
    with pytest.raises(SignatureError, match="no HMAC key"):
        Policy(keyring=path).check(frame(MAC), BASIS)


@pytest.mark.parametrize("stream", ["", "alice", "eu-", "eu-7"])
def test_a_key_signs_for_its_streams(path, stream):
    policy = Policy(keyring=path, today=date(2026, 6, 1))
    assert policy.check(frame(SPARE, stream), BASIS, stream=stream).verified_by == SPARE.id
    with pytest.raises(
        SignatureError, match=rf"by {SPARE.id}, which signs for default, alice, eu-\*, and not"
    ):
        policy.check(frame(SPARE, "us-1"), BASIS, stream="us-1")


@pytest.mark.parametrize(
    ("today", "why"),
    [
        (date(2026, 2, 28), "counts from 2026-03-01 on, and today is 2026-02-28"),
        (date(2026, 3, 1), None),
        (date(2026, 12, 31), None),
        (date(2027, 1, 1), "counted until 2026-12-31, and today is 2027-01-01"),
    ],
)
def test_a_key_counts_on_its_days(path, today, why):
    policy = Policy(keyring=path, today=today)
    policy.check(frame(FLEET), BASIS)
    if why is None:
        policy.check(frame(SPARE), BASIS)
        return
    with pytest.raises(SignatureError, match=f"by {SPARE.id}, which {why}"):
        policy.check(frame(SPARE), BASIS)


def test_a_clock_that_was_set_back_revives_no_key(path, tmp_path):
    late = Policy(keyring=path, today=date(2027, 1, 1), state=tmp_path / "state")
    late.record(late.check(frame(FLEET), BASIS), BASIS)
    early = Policy(keyring=path, today=date(2026, 6, 1), state=tmp_path / "state")
    with pytest.raises(SignatureError, match="counted until 2026-12-31, and today is 2027-01-01"):
        early.check(frame(SPARE, sequence=2), BASIS)


def test_it_is_read_again_where_it_changes(path):
    policy = Policy(keyring=path)
    policy.check(frame(FLEET), BASIS)
    keyring(path, {"key": line(STRANGER)})
    with pytest.raises(SignatureError, match="does not verify"):
        policy.check(frame(FLEET), BASIS)
    path.write_text("{")
    with pytest.raises(TrustError, match=r"keyring\.json is no keyring"):
        policy.check(frame(STRANGER), BASIS)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        policy.check(frame(STRANGER), BASIS)


def test_an_empty_one_trusts_nobody(tmp_path):
    policy = Policy(keyring=keyring(tmp_path / "none.json"))
    with pytest.raises(SignatureError, match="no Ed25519 key to check it"):
        policy.check(frame(FLEET), BASIS)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no keyring"),
        ("[" * 9999, "nested"),
        ("[]", r'it is no {"keys": \[...\]}'),
        ('{"keys": {}}', "it is no"),
        ('{"keys": [1]}', "an object with a field `key`, not 1"),
        ('{"keys": [{"streams": []}]}', "an object with a field `key`"),
        ('{"keys": [{"key": "AAAA"}]}', "damaged"),
        ('{"keys": [{"key": 7}]}', "'key' is 7|key is 7"),
        ('{"keys": [{"key": "KEY", "until": "2026-01-01"}]}', "until is '2026-01-01'"),
        ('{"keys": [{"key": "KEY", "last": "tomorrow"}]}', "isoformat"),
        ('{"keys": [{"key": "KEY", "streams": [""]}]}', "streams are names"),
        ('{"keys": [{"key": "KEY", "streams": "alice"}]}', "streams is 'alice'"),
    ],
)
def test_what_is_no_keyring(tmp_path, text, why):
    (tmp_path / "keyring.json").write_text(text.replace("KEY", line(FLEET)))
    with pytest.raises(TrustError, match=why):
        Policy(keyring=tmp_path / "keyring.json")


def test_one_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Policy(keyring=tmp_path / "keyring.json")
    with pytest.raises(VectorError, match="takes verifiers"):
        Policy(keys=[os.fspath(tmp_path)])
