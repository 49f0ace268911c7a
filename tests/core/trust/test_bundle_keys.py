"""Keys of bundles on the list of a trust file: who may sign bundles, and when anybody has to."""

from __future__ import annotations

import json
from datetime import date

import pytest
from owners import ALICE, DAY, FLEET, SPARE, STRANGER, begun, listing, verifier

from tinylora_edge import Policy, SignatureError, TrustError, VectorError
from tinylora_edge.trust import KeyList, ListedKey, Trust, TrustFile, editor
from tinylora_edge.trust.bundles import Signed

RELEASE = listing(listing(begun()), SPARE, streams=(), bundles=True)
"""FLEET signs vectors, SPARE bundles."""


def policy(tmp_path, trust: Trust, **options) -> Policy:
    (tmp_path / "trust.json").write_bytes(trust.to_bytes())
    return Policy(trust=tmp_path / "trust.json", **({"today": DAY} | options))


def ids(policy: Policy) -> list[str]:
    return [key.id for key in policy.bundles.signers()[0]]


class TestRecord:
    def test_a_list_without_such_keys_is_written_as_before(self):
        key = ListedKey(FLEET.public_key, ("*",), last=DAY)
        assert key.to_json() == {"key": FLEET.public_key.hex(), "streams": ["*"], "to": "2026-03-01"}

    def test_it_is_read_back(self):
        (fleet, release) = Trust.read(RELEASE.to_bytes()).keys.keys
        assert (fleet.bundles, release.bundles, release.streams) == (False, True, ())
        assert json.loads(RELEASE.envelope.payload)["keys"][1]["bundles"] is True

    @pytest.mark.parametrize("value", [False, 1, None, "true", []])
    def test_one_form_alone(self, value):
        payload = json.loads(RELEASE.envelope.payload)
        payload["keys"][1]["bundles"] = value
        data = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
        with pytest.raises(TrustError, match="bundles of a key is true or missing"):
            KeyList.from_bytes(data)

    def test_a_key_for_nothing(self):
        with pytest.raises(TrustError, match="or for bundles, not for 0"):
            ListedKey(FLEET.public_key, ())
        payload = json.loads(RELEASE.envelope.payload)
        del payload["keys"][1]["bundles"]
        data = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
        with pytest.raises(TrustError, match="patterns of streams are a list of 1 to 64"):
            KeyList.from_bytes(data)


class TestKeys:
    def test_listed_ones_count_beside_those_that_were_given(self, tmp_path):
        assert ids(policy(tmp_path, RELEASE)) == [SPARE.id]
        both = policy(tmp_path, RELEASE, bundle_keys=[verifier(STRANGER)])
        assert ids(both) == [STRANGER.id, SPARE.id]

    def test_a_list_without_such_keys_asks_for_nothing(self, tmp_path):
        assert ids(policy(tmp_path, listing(begun()))) == []
        late = policy(tmp_path, listing(begun(), expires=DAY), today=date(2027, 1, 1))
        assert ids(late) == []
        given = policy(tmp_path, listing(begun()), bundle_keys=[verifier(STRANGER)])
        assert ids(given) == [STRANGER.id]

    def test_a_key_of_vectors_signs_no_bundles(self, tmp_path):
        (why,) = [why for key, why in policy(tmp_path, RELEASE).bundles.signers()[1] if key.id == FLEET.id]
        assert why == "it signs no bundles"

    def test_a_key_of_bundles_signs_no_vectors(self):
        assert RELEASE.why_not(RELEASE.keys.keys[1], "", DAY) == (
            "it signs bundles alone, and not for stream 'default'"
        )
        assert [key.id for key in RELEASE.accepted("", DAY)] == [FLEET.id]

    def test_one_key_for_both(self, tmp_path):
        both = listing(begun(), streams=("eu-*",), bundles=True)
        assert ids(policy(tmp_path, both)) == [FLEET.id]
        assert [key.id for key in both.accepted("eu-7", DAY)] == [FLEET.id]

    def test_a_revocation_does_not_open_the_door(self, tmp_path):
        revoked = editor.revoke(RELEASE, SPARE.id, [ALICE], DAY)
        with pytest.raises(TrustError, match=rf"no key counts .*{SPARE.id}: it was revoked on 2026-03-01"):
            policy(tmp_path, revoked).bundles.signers()
        given = policy(tmp_path, revoked, bundle_keys=[verifier(STRANGER)])
        assert ids(given) == [STRANGER.id]

    def test_a_revocation_counts_in_a_running_process(self, tmp_path):
        running = policy(tmp_path, RELEASE)
        assert ids(running) == [SPARE.id]
        TrustFile(tmp_path / "trust.json").accept(editor.revoke(RELEASE, SPARE.id, [ALICE], DAY).to_bytes())
        with pytest.raises(TrustError, match="revoked"):
            running.bundles.signers()

    def test_days(self, tmp_path):
        dated = listing(begun(), SPARE, streams=(), bundles=True, first=DAY, last=date(2026, 3, 2))
        assert ids(policy(tmp_path, dated, today=date(2026, 3, 2))) == [SPARE.id]
        with pytest.raises(TrustError, match="its last day was 2026-03-02, and today is 2026-03-03"):
            policy(tmp_path, dated, today=date(2026, 3, 3)).bundles.signers()

    def test_a_list_past_its_day(self, tmp_path):
        old = listing(begun(), SPARE, streams=(), bundles=True, expires=date(2026, 3, 31))
        with pytest.raises(TrustError, match="until 2026-03-31, and today is 2026-04-01"):
            policy(tmp_path, old, today=date(2026, 4, 1)).bundles.signers()

    def test_a_clock_that_cannot_be_right(self, tmp_path):
        with pytest.raises(VectorError, match="1970-01-01"):
            policy(tmp_path, RELEASE, today=date(1970, 1, 1)).bundles.signers()
        assert ids(policy(tmp_path, listing(begun()), today=date(1970, 1, 1))) == []

    def test_a_device_without_a_clock_goes_by_the_day_of_the_list(self, tmp_path):
        assert ids(policy(tmp_path, RELEASE, today=None)) == [SPARE.id]


class TestSequence:
    def signed(
        self, sequence: int, content: str = "a", *, key: str = SPARE.id, name: str = "phone"
    ) -> Signed:
        return Signed(key, name, sequence, content * 64)

    def test_what_comes_after_what(self, tmp_path):
        for _ in range(2):  # the second policy has the state of the first
            rules = Policy(state=tmp_path / "state").bundles
            rules.check(self.signed(2))
            rules.record(self.signed(2))
            rules.record(self.signed(2))
        with pytest.raises(
            TrustError, match=rf"sequence 1, but 2 was already loaded of 'phone' .*{SPARE.id}"
        ):
            rules.check(self.signed(1))
        with pytest.raises(TrustError, match="has no sequence, but 2 was already loaded"):
            rules.check(self.signed(0))
        with pytest.raises(TrustError, match=r"another bundle of 'phone' .* sequence 2 was loaded before"):
            rules.check(self.signed(2, "b"))
        rules.check(self.signed(3, "b"))

    def test_another_name_or_key_has_its_own(self):
        rules = Policy().bundles
        rules.record(self.signed(2))
        rules.check(self.signed(1, name="tablet"))
        rules.check(self.signed(1, key=STRANGER.id))

    def test_without_a_sequence_nothing_is_kept(self, tmp_path):
        rules = Policy(state=tmp_path / "state").bundles
        rules.record(self.signed(0))
        rules.check(self.signed(0, "b"))
        assert not (tmp_path / "state").exists()

    @pytest.mark.parametrize("sequence", [0, 1])
    def test_a_name_that_is_too_long_to_be_kept(self, sequence):
        with pytest.raises(
            TrustError, match=r"the bundle's name 'n{40}'\.\.\. has 129 characters, and at most 128"
        ):
            Policy().bundles.check(self.signed(sequence, name="n" * 129))

    def test_another_process_was_faster(self, tmp_path):
        one, two = (Policy(state=tmp_path / "state").bundles for _ in range(2))
        one.check(self.signed(2))
        two.record(self.signed(3))
        with pytest.raises(TrustError, match="3 was already loaded"):
            one.record(self.signed(2))

    def test_it_is_no_mark_of_a_vector(self, tmp_path):
        """A vector's marks are under a digest, and the highest day under another word."""
        first = Policy(state=tmp_path / "state", today=DAY)
        first.bundles.record(self.signed(2, name=""))
        found = json.loads((tmp_path / "state").read_bytes().partition(b"\n")[2])
        assert found == {"bundle": {SPARE.id: {"": "2:" + "a" * 32}}}

    def test_the_day_is_kept_where_it_matters(self, tmp_path):
        rules = policy(tmp_path, RELEASE, state=tmp_path / "state").bundles
        rules.record(self.signed(0))
        later = policy(tmp_path, RELEASE, state=tmp_path / "state", today=date(2026, 1, 1)).bundles
        assert later.clock.today() == (DAY - date(2026, 1, 1)).days


def test_a_vector_under_a_key_of_bundles_says_why(tmp_path):
    import support

    from tinylora_edge import MicroVector

    basis = support.random_basis(groups=3)
    data = MicroVector.random(basis, 0.3, seed=1).to_bytes(basis, SPARE)
    with pytest.raises(SignatureError, match="it signs bundles alone"):
        policy(tmp_path, RELEASE).check(data, basis)
