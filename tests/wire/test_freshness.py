"""Freshness: what a policy believes about the newest vector of a stream, and for how long."""

from __future__ import annotations

from datetime import timedelta

import pytest
import support

from tinylora_edge import (
    Ed25519Signer,
    Ed25519Verifier,
    ExpiredError,
    Hmac,
    MicroVector,
    Policy,
    SignatureError,
)
from tinylora_edge.wire import expiry
from tinylora_edge.wire.freshness import believed
from tinylora_edge.wire.sequences import decode
from tinylora_edge.wire.statements import Latest, encode_latest

BASIS = support.random_basis(groups=3)
OLD, NEW = Ed25519Signer(b"o" * 32), Ed25519Signer(b"n" * 32)
TRUSTED = [Ed25519Verifier(OLD.public_key), Ed25519Verifier(NEW.public_key)]
TODAY = 330


def statement(sequence: int, issued: int, until: int, signer=OLD, stream: str = "alice") -> bytes:
    return encode_latest(Latest(sequence, issued, until), BASIS.digest, stream, signer)


def policy(today: int | None = TODAY, state=None, keys=TRUSTED) -> Policy:
    return Policy(keys=keys, today=None if today is None else expiry.day_date(today), state=state)


def freshness(of: Policy, stream: str = "alice"):
    return of.freshness(BASIS, stream=stream)


class TestProblems:
    def test_nobody_has_said_anything(self):
        fresh = freshness(policy())
        assert fresh.due()
        assert "ever said" in fresh.problem(7)

    def test_somebody_has(self):
        fresh = freshness(policy())
        assert fresh.believe(statement(7, TODAY, TODAY + 30)) == Latest(7, TODAY, TODAY + 30)
        assert not fresh.due()
        assert fresh.problem(7) == fresh.problem(8) == ""

    def test_it_was_too_long_ago(self):
        fresh = freshness(policy(TODAY))
        fresh.believe(statement(7, TODAY - 9, TODAY - 1))
        assert fresh.due()
        assert f"since {expiry.day_date(TODAY - 1)}" in fresh.problem(7)
        fresh.believe(statement(7, TODAY, TODAY))
        assert fresh.problem(7) == ""

    def test_a_newer_one_was_published(self):
        fresh = freshness(policy())
        fresh.believe(statement(7, TODAY, TODAY + 30))
        assert "sequence 6, and 7 was published" in fresh.problem(6)
        fresh.believe(statement(5, TODAY, TODAY + 99))
        assert fresh.problem(6), "an older statement takes nothing back"

    def test_the_first_of_a_stream_is_one_too(self):
        fresh = freshness(policy())
        fresh.believe(statement(1, TODAY, TODAY + 30))
        assert not fresh.due()
        assert fresh.problem(1) == ""

    def test_streams_are_apart(self):
        both = policy()
        freshness(both).believe(statement(7, TODAY, TODAY + 30))
        assert freshness(both, "bob").due()
        with pytest.raises(SignatureError):
            freshness(both, "bob").believe(statement(7, TODAY, TODAY + 30))

    def test_what_a_key_said_goes_with_it(self, tmp_path):
        freshness(policy(state=tmp_path / "s")).believe(statement(7, TODAY, TODAY + 30, OLD))
        assert not freshness(policy(state=tmp_path / "s")).due()
        rotated = freshness(policy(state=tmp_path / "s", keys=TRUSTED[1:]))
        assert rotated.due()
        assert rotated.problem(7)

    def test_without_a_key_nobody_can_say_so(self):
        fresh = freshness(Policy())
        assert not fresh.due()
        assert "no key" in fresh.problem(7)

    def test_a_mac_will_do(self):
        key = Hmac(b"m" * 32)
        fresh = freshness(policy(keys=[key]))
        fresh.believe(statement(7, TODAY, TODAY, key))
        assert fresh.problem(7) == ""


class TestMemory:
    def test_it_outlives_a_restart(self, tmp_path):
        freshness(policy(state=tmp_path / "s")).believe(statement(7, TODAY, TODAY + 30))
        again = freshness(policy(state=tmp_path / "s"))
        assert not again.due()
        assert again.problem(7) == ""
        assert again.problem(6)
        assert freshness(policy(TODAY + 31, tmp_path / "s")).due()

    def test_it_is_no_mark_of_vectors(self, tmp_path):
        """A statement about 7 refuses no vector under 7: only whoever fetches may."""
        one = policy(state=tmp_path / "s")
        freshness(one).believe(statement(7, TODAY, TODAY + 30))
        data = MicroVector.zeros(BASIS).to_bytes(BASIS, OLD, stream="alice")
        assert one.check(data, BASIS, stream="alice").sequence == 1

    def test_a_statement_tells_a_device_without_a_clock_the_day(self, tmp_path):
        clockless = policy(None, tmp_path / "s")
        data = MicroVector.zeros(BASIS).to_bytes(BASIS, OLD, until=expiry.day_date(TODAY - 1))
        clockless.check(data, BASIS)
        fresh = freshness(clockless)
        assert fresh.due()
        fresh.believe(statement(7, TODAY, TODAY + 30))
        assert fresh.due(), "it asks every time, for the day"
        with pytest.raises(ExpiredError):
            clockless.check(data, BASIS)
        with pytest.raises(ExpiredError):
            policy(None, tmp_path / "s").check(data, BASIS)

    def test_the_state_stays_one_that_earlier_releases_read(self, tmp_path):
        freshness(policy(state=tmp_path / "s")).believe(statement(7, TODAY, TODAY + 30))
        data = (tmp_path / "s").read_bytes()
        assert data.startswith(b"tinylora state 2 ")
        found = {mark: accepted.sequence for mark, accepted in decode(data).items()}
        assert found == {
            ("", "", "day"): TODAY,
            (f"{BASIS.digest} newest", OLD.id, "alice"): 7,
            (f"{BASIS.digest} until", OLD.id, "alice"): TODAY + 30,
        }


class TestBelieved:
    def test_what_does_not_verify_changes_nothing_and_says_why(self, tmp_path):
        fresh = freshness(policy(state=tmp_path / "s"))
        forged = statement(7, TODAY, TODAY + 30, Ed25519Signer(bytes(32)))
        assert "does not verify" in believed(fresh, forged)
        assert "no statement of the newest" in believed(fresh, b"<html>")
        assert "no statement" in believed(fresh, None)
        assert not (tmp_path / "s").exists()
        assert fresh.due()
        assert believed(fresh, statement(7, TODAY, TODAY)) == ""

    def test_a_clock_set_back_does_not_make_it_fresh_again(self):
        now = [expiry.day_date(TODAY)]
        one = Policy(keys=TRUSTED, today=lambda: now[0])
        fresh = freshness(one)
        fresh.believe(statement(7, TODAY - 5, TODAY - 1))
        assert fresh.problem(7)
        now[0] -= timedelta(10)
        assert fresh.problem(7)
