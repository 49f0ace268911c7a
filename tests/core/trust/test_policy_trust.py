"""Policy(trust=FILE): the keys on the list are trusted, each for its streams and days."""

from __future__ import annotations

import pickle
from datetime import date

import pytest
import support
from owners import ALICE, DAY, FLEET, SPARE, STRANGER, begun, listing, verifier

from tinylora_edge import Hmac, MicroVector, Policy, SignatureError, TrustError, VectorError
from tinylora_edge.trust import TrustFile, editor

BASIS = support.random_basis(groups=3)
OTHER = listing(listing(begun()), SPARE, streams=("eu-*",))


def frame(signer, sequence: int = 1, tag=None) -> bytes:
    values = MicroVector.random(BASIS, 0.3, seed=sequence).values
    return MicroVector(values, "fp32", sequence).to_bytes(BASIS, tag or signer, version=1)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "trust.json").write_bytes(OTHER.to_bytes())
    return tmp_path / "trust.json"


def test_a_listed_key_verifies(path):
    assert Policy(trust=path).check(frame(FLEET), BASIS).verified_by == FLEET.id
    assert Policy(trust=str(path)).require == "signature"


def test_a_trust_file_implies_a_signature(path):
    with pytest.raises(SignatureError, match="requires a signature, but this is a CRC-32 frame"):
        Policy(trust=path).check(frame(None, tag="crc32"), BASIS)
    mac = Hmac(b"k" * 32)
    policy = Policy(trust=path, keys=[mac])
    assert policy.require == "mac"
    assert policy.check(frame(mac), BASIS).verified_by == mac.id
    Policy("signature", trust=path)
    with pytest.raises(VectorError, match="needs a key"):
        Policy("signature", keys=[mac])


def test_a_mac_is_no_matter_of_the_list(path):
    with pytest.raises(SignatureError, match="no HMAC key to check it"):
        Policy(trust=path).check(frame(Hmac(b"k" * 32)), BASIS)


def test_a_list_without_a_key(path):
    path.write_bytes(begun().to_bytes())
    with pytest.raises(SignatureError, match="no Ed25519 key to check it"):
        Policy(trust=path).check(frame(FLEET), BASIS)


def test_a_key_of_other_streams(path):
    policy = Policy(trust=path)
    assert policy.check(frame(SPARE), BASIS, stream="eu-7").verified_by == SPARE.id
    with pytest.raises(
        SignatureError, match=rf"{SPARE.id}, which does not count: it signs for eu-\*, and not"
    ):
        policy.check(frame(SPARE), BASIS, stream="us-1")


def test_a_key_of_other_days(path):
    path.write_bytes(listing(begun(), last=date(2026, 6, 30)).to_bytes())
    policy = Policy(trust=path, today=date(2026, 7, 1))
    with pytest.raises(SignatureError, match="its last day was 2026-06-30, and today is 2026-07-01"):
        policy.check(frame(FLEET), BASIS)


def test_a_stranger(path):
    with pytest.raises(SignatureError, match="does not verify under any of the 1 trusted keys"):
        Policy(trust=path).check(frame(STRANGER), BASIS)
    assert Policy(trust=path, keys=[verifier(STRANGER)]).check(frame(STRANGER), BASIS)


def test_a_revocation_counts_in_a_running_process(path, tmp_path):
    policy = Policy(trust=path, state=tmp_path / "state")
    policy.record(policy.check(frame(FLEET, 7), BASIS), BASIS)
    revoked = editor.revoke(OTHER, FLEET.id, [ALICE], DAY)
    TrustFile(path).accept(revoked.to_bytes())
    with pytest.raises(SignatureError, match="revoked on 2026-03-01"):
        policy.check(frame(FLEET, 8), BASIS)
    path.write_bytes(OTHER.to_bytes())  # whoever puts the old file back gains nothing here
    with pytest.raises(TrustError, match="was already accepted"):
        policy.check(frame(FLEET, 8), BASIS)


def test_a_pickled_policy_keeps_its_trust_file(path):
    policy = pickle.loads(pickle.dumps(Policy(trust=path)))
    assert policy.check(frame(FLEET), BASIS).verified_by == FLEET.id


@pytest.mark.parametrize("keys", ["x", [Hmac(b"k" * 32)], [b"x" * 32]])
def test_bundle_keys_are_public_keys(keys):
    with pytest.raises(VectorError, match=r"bundle_keys=\[\.\.\.\] takes public keys, not"):
        Policy(bundle_keys=keys)
