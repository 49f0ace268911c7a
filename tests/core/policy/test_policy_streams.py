"""Policies and frames that are bound to a stream, or to days: versions 2 and 3."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, date, datetime

import numpy as np
import pytest
import support

from tinylora_edge import (
    ChecksumError,
    Ed25519Signer,
    Ed25519Verifier,
    ExpiredError,
    FrameError,
    Hmac,
    MicroVector,
    Policy,
    RollbackError,
    SignatureError,
    VectorError,
)

BASIS = support.random_basis(groups=3)
MAC, SIGN = Hmac(b"k" * 32), Ed25519Signer(b"k" * 32)
KEYS = [MAC, Ed25519Verifier(SIGN.public_key)]
DAY = date(2026, 12, 31)
TAGS = {"crc32": ("crc32", ChecksumError), "hmac": (MAC, SignatureError), "ed25519": (SIGN, SignatureError)}

pytestmark = pytest.mark.filterwarnings("error")


def vector(sequence: int = 1) -> MicroVector:
    return MicroVector(np.array([[0.5], [-0.25], [0.125]], np.float32), "bf16", sequence)


class TestStreams:
    @pytest.mark.parametrize("tag", TAGS)
    @pytest.mark.parametrize("until", [None, DAY])
    def test_a_frame_verifies_in_its_own_alone(self, tag, until):
        signer, error = TAGS[tag]
        policy = Policy("none", keys=KEYS, today=DAY)
        for stream in ("", "alice", "jos\u00e9", "a" * 128):
            data = vector().to_bytes(BASIS, signer, stream=stream, until=until)
            found = policy.check(data, BASIS, stream=stream)
            assert (found, found.stream, found.until) == (vector(), stream, until)
            for other in {"", "alice", "bob", "Alice", "alice ", "alice\n"} - {stream}:
                with pytest.raises(error, match=r"of another stream|of a stream with a name"):
                    policy.check(data, BASIS, stream=other)

    @pytest.mark.parametrize("tag", TAGS)
    def test_one_of_the_default_stream_says_how_to_mend_it(self, tag):
        """What train, tune and distill leave is of that one, and is not damaged."""
        signer, error = TAGS[tag]
        policy, data = Policy("none", keys=KEYS), vector().to_bytes(BASIS, signer)
        with pytest.raises(error, match=r"'alice': of the default one; .*pack --stream 'alice'"):
            policy.check(data, BASIS, stream="alice")
        damaged = bytes([*data[:-1], data[-1] ^ 1])
        with pytest.raises(error, match=r"damaged on its way|was altered"):
            policy.check(damaged, BASIS, stream="alice")

    def test_a_version_is_no_other_version(self):
        """The nibble alone, under the same tag."""
        for until in (None, DAY):
            data = vector().to_bytes(BASIS, SIGN, until=until)
            with pytest.raises((SignatureError, FrameError)):
                Policy("none", keys=KEYS).check(bytes([data[0] ^ 0x10]) + data[1:], BASIS)

    def test_a_name_that_is_no_text(self):
        with pytest.raises(FrameError, match="parts of characters"):
            vector().to_bytes(BASIS, stream="\ud800")
        with pytest.raises(FrameError, match="parts of characters"):
            Policy().check(vector().to_bytes(BASIS), BASIS, stream="\ud800")

    def test_a_name_that_no_policy_keeps(self):
        """Else every device would refuse what was signed."""
        with pytest.raises(FrameError, match=r"'a{40}'\.\.\. has 129 characters, .* at most 128"):
            vector().to_bytes(BASIS, MAC, stream="a" * 129)


class TestLastDays:
    DATA = vector().to_bytes(BASIS, MAC, until=DAY)

    def policy(self, today, **options) -> Policy:
        return Policy(keys=[MAC], today=today, **options)

    @pytest.mark.parametrize("today", [date(2026, 1, 1), DAY, datetime(2026, 12, 31, 23, 59, tzinfo=UTC)])
    def test_until_its_end_it_is_accepted(self, today):
        assert self.policy(today).check(self.DATA, BASIS).until == DAY
        assert self.policy(lambda: today).check(self.DATA, BASIS) == vector()

    @pytest.mark.parametrize("today", [date(2027, 1, 1), date(2200, 1, 1)])
    def test_afterwards_it_is_refused(self, today):
        with pytest.raises(ExpiredError, match=f"until 2026-12-31, and today is {today}"):
            self.policy(today).check(self.DATA, BASIS)

    def test_the_first_and_the_last_day(self):
        for day in (date(2026, 1, 1), date(2205, 6, 7)):
            data = vector().to_bytes(BASIS, MAC, until=day)
            assert int.from_bytes(data[7:9], "little") == (0 if day.year == 2026 else 65535)
            assert self.policy(day).check(data, BASIS).until == day

    @pytest.mark.parametrize("day", [date(2025, 12, 31), date(2205, 6, 8), "2026-12-31", 5])
    def test_a_day_that_no_frame_names(self, day):
        with pytest.raises(VectorError, match="2026-01-01 to 2205-06-07"):
            vector().to_bytes(BASIS, until=day)

    def test_the_day_is_the_systems_unless_somebody_says_so(self):
        data = vector().to_bytes(BASIS, MAC, until=datetime.now(UTC).date())
        Policy(keys=[MAC]).check(data, BASIS)

    def test_the_tag_is_checked_first(self):
        """A day that nobody signed is no day."""
        policy = self.policy(date(2027, 1, 1))
        with pytest.raises(SignatureError):
            policy.check(self.DATA[:-1] + bytes([self.DATA[-1] ^ 1]), BASIS)

    @pytest.mark.parametrize("today", ["2026-12-31", 5, 20261231.0])
    def test_what_is_no_clock(self, today):
        with pytest.raises(VectorError, match="is no clock"):
            self.policy(today)

    @pytest.mark.parametrize("said", [date(1970, 1, 1), date(2025, 12, 31), date(9999, 1, 1), None, "today"])
    def test_a_clock_that_cannot_be_right_is_refused(self, said):
        """An empty battery shows 1970. Frames without a day do not ask."""
        policy = self.policy(lambda: said)
        with pytest.raises(VectorError, match=r"clock says .*today=None"):
            policy.check(self.DATA, BASIS)
        policy.check(vector().to_bytes(BASIS, MAC), BASIS)


class TestClocksThatAreWrong:
    OLD, NEW = (vector(1 + i).to_bytes(BASIS, MAC, until=date(2026, 12, 1 + i)) for i in range(2))

    def test_a_device_without_a_clock_knows_the_highest_day_that_it_has_seen(self, tmp_path):
        clockless = Policy(keys=[MAC], today=None, state=tmp_path / "state")
        assert clockless.check(self.OLD, BASIS).sequence == 1
        told = Policy(keys=[MAC], today=date(2026, 12, 2), state=tmp_path / "state")
        told.record(told.check(self.NEW, BASIS), BASIS)
        with pytest.raises(ExpiredError):
            clockless.check(self.OLD, BASIS)

    @pytest.mark.parametrize("restart", [False, True])
    @pytest.mark.parametrize("how", ["record", "refuse"])
    def test_a_clock_set_back_accepts_nothing_that_was_over(self, tmp_path, how, restart):
        now = [date(2026, 12, 2)]

        def policy() -> Policy:
            return Policy(keys=[MAC], today=lambda: now[0], state=tmp_path / "state")

        one = policy()
        if how == "record":
            with one.admit(self.NEW, BASIS, stream=""):
                pass
        else:
            with pytest.raises(ExpiredError):
                one.check(self.OLD, BASIS)
        now[0] = date(2026, 11, 1)
        with pytest.raises(ExpiredError, match="today is 2026-12-02"):
            (policy() if restart else one).check(self.OLD, BASIS)
        assert (policy() if restart else one).check(self.NEW, BASIS).sequence == 2

    def test_a_state_that_cannot_be_written_does_not_hide_the_refusal(self, tmp_path, monkeypatch):
        policy = Policy(keys=[MAC], today=date(2026, 12, 2), state=tmp_path / "state")

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("tinylora_edge.wire.sequences.atomic_write", full)
        with pytest.raises(ExpiredError):
            policy.check(self.OLD, BASIS)
        accepted = policy.check(self.NEW, BASIS)
        with pytest.raises(OSError, match="No space"):
            policy.record(accepted, BASIS)

    def test_what_has_no_last_day_writes_no_day(self, tmp_path):
        policy = Policy(keys=[MAC], state=tmp_path / "state")
        policy.record(policy.check(vector().to_bytes(BASIS, MAC), BASIS), BASIS)
        assert '"day"' not in (tmp_path / "state").read_text()

    def test_the_rules_about_sequences_stay(self):
        policy = Policy(keys=[MAC], today=date(2026, 12, 1))
        policy.record(policy.check(self.NEW, BASIS), BASIS)
        with pytest.raises(RollbackError):
            policy.check(self.OLD, BASIS)


@pytest.mark.parametrize("how", [lambda v: pickle.loads(pickle.dumps(v)), copy.copy, copy.deepcopy])
def test_a_copy_of_a_checked_vector_says_the_same(how):
    data = vector().to_bytes(BASIS, MAC, stream="alice", until=DAY)
    found = Policy(keys=[MAC], today=DAY).check(data, BASIS, stream="alice")
    other = how(found)
    assert vars(other).keys() == vars(found).keys()
    assert (other, other.stream, other.until, other.sha256) == (found, "alice", DAY, found.sha256)
    assert not other.values.flags.writeable


def test_a_policy_with_a_clock_can_be_copied():
    other = pickle.loads(pickle.dumps(Policy("none", today=DAY)))
    assert other.check(vector().to_bytes(BASIS, until=DAY), BASIS) == vector()
