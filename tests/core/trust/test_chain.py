"""Trust: every rule of a trust file, what may follow it, and which keys it lets sign."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta

import owners
import pytest
import support
from hypothesis import given
from hypothesis import strategies as st
from owners import ALICE, BOB, CAROL, DAY, FLEET, SPARE, STRANGER, begun, listing, rotated

from tinylora_edge import TrustError, limits
from tinylora_edge.trust import Envelope, KeyList, ListedKey, Root, Trust, editor
from tinylora_edge.trust.envelope import canonical
from tinylora_edge.trust.records import LIST_TYPE, ROOT_TYPE

WHOLE = listing(begun(), FLEET, first=date(2026, 1, 1), last=date(2027, 12, 31))


def refusal(data: bytes) -> str:
    with pytest.raises(TrustError) as caught:
        Trust.read(data)
    return str(caught.value)


def altered(trust: Trust, change) -> bytes:
    """The bytes of a file after its JSON was changed."""
    value = json.loads(trust.to_bytes())
    change(value)
    return canonical(value)


def with_list(trust: Trust, keys: KeyList, *signers) -> bytes:
    """The file with another list, signed by whoever."""
    return replace(trust, envelope=Envelope(LIST_TYPE, keys.to_bytes()).signed(signers)).to_bytes()


class TestForm:
    def test_what_is_written_is_read(self):
        again = Trust.read(WHOLE.to_bytes())
        assert again.keys == WHOLE.keys
        assert again.root == WHOLE.root
        assert again.to_bytes() == WHOLE.to_bytes()
        assert repr(again) == "Trust(root 1, list 2, 1 keys)"

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"", "no trust file"),
            (b"[]", "is an object"),
            (b'{"trust":2,"roots":[],"keys":{}}', "format 2"),
            (b'{"trust":1,"roots":[]}', "lacks keys"),
            (b'{"trust":1,"roots":[],"keys":{}}', "list of 1 to 128"),
            (b'{"trust":1,"roots":[1],"keys":{}}', "an envelope is an object"),
            (b"[" * 60_000, "nested more than"),
            (b" " * (limits.TRUST_BYTES + 1), "more than 65,536 bytes"),
        ],
    )
    def test_no_trust_file(self, data, why):
        assert why in refusal(data)

    def test_unknown_fields(self):
        """A restriction that this release does not know must not be left out."""
        assert "'basis'" in refusal(altered(WHOLE, lambda value: value.update(basis="x")))
        value = json.loads(WHOLE.keys.to_bytes())
        value["keys"][0]["basis"] = "50c95af5"
        envelope = Envelope(LIST_TYPE, canonical(value)).signed([ALICE])
        assert "'basis', which this release does not know" in refusal(
            replace(WHOLE, envelope=envelope).to_bytes()
        )

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda data: data.replace(b":", b": "),
            lambda data: data.replace(b'{"', b'{"version":9,"', 1),
            lambda data: data + b"\n",
            lambda data: data.replace(b"2026", b"\\u0032026"),
        ],
    )
    def test_a_payload_in_another_form_than_the_one(self, spoil):
        payload = spoil(WHOLE.keys.to_bytes())
        assert payload != WHOLE.keys.to_bytes()
        envelope = Envelope(LIST_TYPE, payload).signed([ALICE])
        assert "one form" in refusal(replace(WHOLE, envelope=envelope).to_bytes())

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"version": 0}, "1 to 2147483647"),
            ({"version": True}, "1 to 2147483647"),
            ({"version": 1 << 31}, "1 to 2147483647"),
            ({"issued": None}, "not null"),
            ({"issued": "2026-02-30"}, "2026-02-30 is no day"),
            ({"issued": "20260201"}, "a day such as"),
            ({"expires": "2025-01-01"}, "would expire"),
            ({"keys": [{"key": "00" * 32, "streams": ["*"]}] * 2}, "each of them once"),
            ({"keys": [{"key": "00" * 32, "streams": []}]}, "list of 1 to 64"),
            ({"keys": [{"key": "00" * 32, "streams": ["a*b"]}]}, "a pattern of streams"),
            ({"keys": [{"key": "00" * 31, "streams": ["*"]}]}, "a public key"),
            (
                {"keys": [{"key": "00" * 32, "streams": ["*"], "from": "2026-01-02", "to": "2026-01-01"}]},
                "none",
            ),
        ],
    )
    def test_lists_that_are_none(self, change, why):
        payload = canonical(json.loads(WHOLE.keys.to_bytes()) | change)
        with pytest.raises(TrustError, match=why):
            KeyList.from_bytes(payload)

    @given(st.binary(max_size=300))
    def test_random_bytes_raise_nothing_else(self, data):
        for read in (Trust.read, Root.from_bytes, KeyList.from_bytes):
            with pytest.raises(TrustError):
                read(data)

    @given(st.data())
    def test_every_change_of_a_byte_is_refused_or_changes_nothing_that_counts(self, data):
        whole = WHOLE.to_bytes()
        position = data.draw(st.integers(0, len(whole) - 1))
        other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[position]))
        try:
            found = Trust.read(whole[:position] + bytes([other]) + whole[position + 1 :])
        except TrustError:
            return
        assert (found.root, found.keys) == (WHOLE.root, WHOLE.keys)


class TestRoots:
    def test_a_root_is_signed_by_its_own_threshold(self):
        unsigned = editor.begin([ALICE.public_key, BOB.public_key], 2, [ALICE], DAY)
        assert "root 1 is signed by 1 of the keys of root 1, which asks for 2" in refusal(unsigned.to_bytes())
        assert Trust.read(editor.sign(unsigned, [BOB]).to_bytes()).root.threshold == 2

    def test_one_key_counts_once_whatever_it_signs(self):
        def twice(value):
            for envelope in (*value["roots"], value["keys"]):
                envelope["signatures"] *= 2

        unsigned = editor.begin([ALICE.public_key, BOB.public_key], 2, [ALICE], DAY)
        assert "is there twice" in refusal(altered(unsigned, twice))

    def test_a_strangers_signature_counts_for_nothing(self):
        forged = editor.begin([STRANGER.public_key], 1, [STRANGER], DAY)
        root = replace(forged.roots[0], payload=begun().roots[0].payload)
        assert "signed by 0" in refusal(replace(forged, roots=(root.signed([STRANGER]),)).to_bytes())

    def test_what_was_signed_as_a_list_is_no_root(self):
        root = Envelope(LIST_TYPE, WHOLE.roots[0].payload).signed([ALICE])
        assert "type 'application/vnd.tinylora.keys+json'" in refusal(
            replace(WHOLE, roots=(root,)).to_bytes()
        )
        renamed = replace(root, kind=ROOT_TYPE)
        assert "signed by 0" in refusal(replace(WHOLE, roots=(renamed,)).to_bytes())

    def test_a_weak_key_is_refused(self):
        weak = Root(1, 1, (bytes([1]) + bytes(31),))
        envelope = Envelope(ROOT_TYPE, weak.to_bytes())
        assert "anybody could sign" in refusal(replace(WHOLE, roots=(envelope,)).to_bytes())

    @pytest.mark.parametrize(("threshold", "keys"), [(0, 1), (2, 1), (1, 0), (1, limits.ROOT_KEYS + 1)])
    def test_roots_that_are_none(self, threshold, keys):
        with pytest.raises(TrustError):
            Root(1, threshold, tuple(bytes([n]) * 32 for n in range(keys)))


class TestRotation:
    def test_the_next_root_is_signed_by_both(self):
        new = rotated(WHOLE, BOB)
        assert Trust.read(new.to_bytes()).root.version == 2
        for missing in (ALICE, BOB):
            kept = tuple(one for one in new.roots[1].signatures if one[0] != missing.id)
            lacking = replace(new, roots=(new.roots[0], replace(new.roots[1], signatures=kept)))
            assert "root 2 is signed by 0 of the keys of root" in refusal(lacking.to_bytes())

    def test_the_old_root_signs_no_list_any_more(self):
        new = rotated(WHOLE, BOB)
        assert "signed by 0" in refusal(with_list(new, replace(new.keys, version=9), ALICE))

    def test_a_chain_without_a_gap(self):
        three = rotated(rotated(WHOLE, BOB), CAROL, by=(BOB,))
        assert Trust.read(three.to_bytes()).root.keys == (CAROL.public_key,)
        gap = replace(three, roots=(three.roots[0], three.roots[2]))
        assert "root 2 of the chain says that it has version 3" in refusal(gap.to_bytes())
        headless = replace(three, roots=three.roots[1:])
        assert "root 1 of the chain says that it has version 2" in refusal(headless.to_bytes())

    def test_a_list_of_another_root_than_the_last(self):
        new = rotated(WHOLE, BOB)
        assert "of root 1, but the last root has version 2" in refusal(
            with_list(new, replace(new.keys, root=1), BOB)
        )

    def test_a_device_that_was_away_for_several_rotations_walks_the_chain(self):
        last = rotated(rotated(rotated(WHOLE, BOB), CAROL, by=(BOB,)), ALICE, BOB, by=(CAROL,), threshold=2)
        assert WHOLE.updated(last.to_bytes()).root.version == 4

    def test_thresholds_of_both_roots_count(self):
        two = listing(begun(ALICE, BOB, threshold=2), by=(ALICE, BOB))
        with pytest.raises(TrustError, match="signed by 1 of the keys of root 1, which asks for 2"):
            Trust.read(rotated(two, CAROL, by=(ALICE,)).to_bytes())
        half = rotated(two, CAROL, by=(ALICE,))
        assert two.updated(editor.sign(half, [BOB]).to_bytes()).root.version == 2


class TestUpdates:
    def test_what_is_newer_is_believed(self):
        newer = editor.revoke(WHOLE, FLEET.id, [ALICE], DAY)
        assert WHOLE.updated(newer.to_bytes()).keys.version == 3

    def test_the_same_changes_nothing(self):
        assert WHOLE.updated(WHOLE.to_bytes()).keys == WHOLE.keys

    def test_an_older_list_is_refused(self):
        newer = editor.revoke(WHOLE, FLEET.id, [ALICE], DAY)
        with pytest.raises(
            TrustError, match="list is 2 of root 1, but list 3 of root 1 was already accepted"
        ):
            newer.updated(WHOLE.to_bytes())

    def test_an_older_root_is_refused_whatever_its_list_is(self):
        new, old = rotated(WHOLE, BOB), WHOLE
        for _ in range(5):
            old = listing(old, SPARE)
        assert old.keys.version > new.keys.version
        with pytest.raises(TrustError, match="of root 1, but list 3 of root 2"):
            new.updated(old.to_bytes())

    def test_another_list_with_the_same_version_is_refused(self):
        other = listing(begun(), SPARE)
        assert other.keys.version == WHOLE.keys.version
        with pytest.raises(TrustError, match="a version is used once"):
            WHOLE.updated(other.to_bytes())

    def test_another_owner_s_file_is_refused(self):
        theirs = listing(begun(STRANGER), by=(STRANGER,))
        with pytest.raises(TrustError, match="another root 1 than the one that is trusted here"):
            WHOLE.updated(theirs.to_bytes())
        fork = rotated(WHOLE, STRANGER)
        with pytest.raises(TrustError, match="another root 2"):
            rotated(WHOLE, BOB).updated(fork.to_bytes())

    def test_a_list_of_a_higher_root_counts_whatever_its_version(self):
        """Whoever signed the highest version with a stolen root locks nobody out for good."""
        far = with_list(WHOLE, replace(WHOLE.keys, version=limits.TRUST_VERSION), ALICE)
        stuck = WHOLE.updated(far)
        next_root = rotated(WHOLE, BOB)
        assert stuck.updated(next_root.to_bytes()).keys.version == 3


class TestWhoMaySign:
    def ids(self, trust, stream="", day=DAY):
        return [key.id for key in trust.accepted(stream, day)]

    def test_days(self):
        first, last = WHOLE.keys.keys[0].first, WHOLE.keys.keys[0].last
        early = replace(WHOLE, keys=replace(WHOLE.keys, issued=date(2025, 1, 1)))
        assert self.ids(early, day=first - timedelta(1)) == []
        assert self.ids(early, day=first) == self.ids(early, day=last) == [FLEET.id]
        assert self.ids(early, day=last + timedelta(1)) == []

    def test_a_clock_that_is_slow_counts_as_the_day_of_the_list(self):
        ended = listing(begun(), last=DAY - timedelta(1))
        for day in (date(1970, 1, 1), None, DAY):
            assert self.ids(ended, day=day) == []
            assert f"today is {DAY}" in ended.why_not(ended.keys.keys[0], "", day)
        assert self.ids(WHOLE, day=date(1970, 1, 1)) == [FLEET.id]

    def test_streams(self):
        trust = listing(begun(), streams=("default", "eu-*"))
        assert [
            stream
            for stream in ("", "default", "eu-", "eu-7", "e", "us-1", "EU-1")
            if self.ids(trust, stream)
        ] == [
            "",
            "default",
            "eu-",
            "eu-7",
        ]

    def test_what_is_revoked_signs_nothing_on_any_day(self):
        trust = editor.revoke(WHOLE, FLEET.id, [ALICE], DAY + timedelta(30))
        for day in (date(2026, 1, 2), DAY + timedelta(29), date(2027, 1, 1)):
            assert self.ids(trust, day=day) == []

    def test_a_list_past_its_day(self):
        trust = listing(begun(), expires=DAY + timedelta(90))
        assert self.ids(trust, day=DAY + timedelta(90)) == [FLEET.id]
        with pytest.raises(TrustError, match=r"until 2026-05-30, and today is 2026-05-31: fetch a newer"):
            trust.accepted("", DAY + timedelta(91))


class TestEditing:
    def test_a_revoked_key_is_not_listed_again(self):
        revoked = editor.revoke(WHOLE, FLEET.id, [ALICE], DAY)
        with pytest.raises(TrustError, match="was revoked on 2026-03-01"):
            listing(revoked, FLEET)

    def test_a_key_that_is_not_listed_cannot_be_revoked(self):
        with pytest.raises(TrustError, match=f"{SPARE.id} is not on the list, which has {FLEET.id}"):
            editor.revoke(WHOLE, SPARE.id, [ALICE], DAY)

    def test_who_is_no_owner_signs_nothing(self):
        for edit in (
            lambda: listing(WHOLE, SPARE, by=(STRANGER,)),
            lambda: editor.revoke(WHOLE, FLEET.id, [STRANGER], DAY),
            lambda: editor.sign(WHOLE, [STRANGER]),
            lambda: rotated(WHOLE, BOB, by=(STRANGER,)),
        ):
            with pytest.raises(TrustError, match=f"{STRANGER.id} is no key of root"):
                edit()

    def test_a_key_is_listed_anew_with_other_days(self):
        again = listing(WHOLE, FLEET, streams=("a",))
        assert again.keys.keys == (ListedKey(FLEET.public_key, ("a",)),)

    def test_a_list_that_has_expired_is_given_another_day(self):
        trust = listing(begun(), expires=DAY)
        later = DAY + timedelta(1)
        with pytest.raises(
            TrustError, match=r"would expire on 2026-03-01, and today is 2026-03-02: name a later"
        ):
            editor.revoke(trust, FLEET.id, [ALICE], later)
        assert editor.revoke(trust, FLEET.id, [ALICE], later, later).keys.expires == later

    def test_days_of_issue_never_fall(self):
        assert listing(WHOLE, SPARE, day=date(2020, 1, 1)).keys.issued == DAY

    def test_as_much_as_a_list_may_have_fits_the_file(self):
        trust = begun()
        keys = tuple(
            ListedKey(support.hashlib.sha256(bytes([n])).digest(), ("user-0001",), DAY, DAY, DAY)
            for n in range(limits.TRUST_KEYS)
        )
        keys = tuple(key for key in keys if key.id)
        data = with_list(trust, replace(trust.keys, version=2, keys=keys), ALICE)
        assert len(Trust.read(data).keys.keys) == limits.TRUST_KEYS
        assert len(data) < limits.TRUST_BYTES


def test_the_device_s_own_ed25519_is_enough(monkeypatch):
    """A device without the `cryptography` package reads the same file."""
    import sys

    data = WHOLE.to_bytes()
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    trust = Trust.read(data, support.ed25519)
    assert [key.id for key in trust.accepted("", DAY)] == [FLEET.id]
    assert owners.FLEET.id == FLEET.id
