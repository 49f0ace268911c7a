"""Policy: every rule and their order, streams and days, what is remembered; a refusal changes nothing."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
import support

from tinylora_edge import Bases, Ed25519Signer, Ed25519Verifier, Hmac, MicroVector, Policy
from tinylora_edge.errors import (
    BasisMismatchError,
    ChecksumError,
    ExpiredError,
    FrameError,
    NonFiniteError,
    RollbackError,
    SignatureError,
    VectorError,
)

FACTORS = support.random_factors(3, kinds=("attn_q",))
BASES = Bases(FACTORS)
BASIS = BASES.basis(rank=1)
"""R is v: its norm is that of v."""
OTHER = support.random_basis(groups=3, rng=1)
KEY, STRANGER = b"k" * 32, b"s" * 32
MAC, SIGN = Hmac(KEY), Ed25519Signer(KEY)
VERIFY = Ed25519Verifier(SIGN.public_key)
KEYS = [MAC, VERIFY]
DAY = date(2026, 12, 31)
TAGS = {"crc32": ("crc32", ChecksumError), "hmac": (MAC, SignatureError), "ed25519": (SIGN, SignatureError)}

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def vector(sequence: int = 0, values=(0.5, -0.25, 0.125), basis=BASIS) -> MicroVector:
    return MicroVector(np.array(values, np.float32), "fp32", sequence, basis.digest)


def crc(sequence: int = 0, basis=BASIS, user: str = "") -> bytes:
    return vector(sequence, basis=basis).to_bytes(basis, user=user)


def damage(data: bytes, position: int = -1) -> bytes:
    position %= len(data)
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


CRC = vector().to_bytes(BASIS)


@pytest.mark.parametrize("first", [0x00, 0x10, 0x40, 0x43, 0x60, 0x2C, 0x3D])
def test_a_version_or_tag_that_is_none(first):
    with pytest.raises(FrameError):
        Policy().check(bytes([first]) + crc()[1:], BASIS)


def test_a_digest_that_differs_behind_the_first_4_bytes_fails_the_tag():
    twin = support.with_digest(support.random_basis(groups=3, rng=2), BASIS.digest[:8] + "0" * 56)
    for signer, error in TAGS.values():
        with pytest.raises(error):
            Policy(keys=KEYS).check(vector(basis=twin).to_bytes(twin, signer), BASIS)


def test_a_frame_names_its_own_basis_among_all_of_a_model():
    for basis in map(BASES.__getitem__, BASES):
        sent = MicroVector.random(basis, 0.5, seed=3)
        assert Policy().check(sent.to_bytes(basis), BASES) == sent
    with pytest.raises(BasisMismatchError, match=rf"{OTHER.id}, which is none of factors {BASES.id}"):
        Policy().check(crc(basis=OTHER), BASES)
    with pytest.raises(BasisMismatchError, match=rf"{BASIS.id}, but the loaded basis is {OTHER.id}"):
        Policy().check(crc(), OTHER)


class TestTags:
    @pytest.mark.parametrize("signer", [MAC, SIGN], ids=["mac", "signature"])
    def test_under_any_trusted_key(self, signer):
        strangers = [Hmac(STRANGER), Ed25519Verifier(Ed25519Signer(STRANGER).public_key)]
        data = vector(3).to_bytes(BASIS, signer)
        assert Policy(keys=[*strangers, *KEYS]).check(data, BASIS) == vector(3)
        with pytest.raises(SignatureError, match="2 trusted keys"):
            Policy(keys=[*strangers, *KEYS]).check(damage(data), BASIS)
        with pytest.raises(SignatureError, match="does not verify"):
            Policy(keys=strangers).check(data, BASIS)

    @pytest.mark.parametrize(("signer", "other"), [(MAC, VERIFY), (SIGN, MAC)], ids=["mac", "signature"])
    def test_that_no_key_can_check(self, signer, other):
        for keys in ([], [other]):
            with pytest.raises(SignatureError, match=r"no .* key to check it"):
                Policy(keys=keys).check(vector().to_bytes(BASIS, signer), BASIS)

    @pytest.mark.parametrize("keys", [[VERIFY], [MAC], KEYS])
    def test_with_a_key_a_checksum_is_not_enough(self, keys):
        with pytest.raises(SignatureError, match=f"a CRC-32 alone, .* under one of {len(keys)} keys"):
            Policy(keys=keys).check(CRC, BASIS)


class TestValues:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_finite(self, value):
        payload = np.array([0, value, 0], "<f4").tobytes()
        with pytest.raises(NonFiniteError, match="value 1"):
            Policy().check(support.frame(BASIS.digest, payload), BASIS)

    def test_the_norm_is_that_of_R_whatever_the_size(self):
        policy, message = Policy(max_norm=5), r"norm 5\.0\d*, .* at most 5"
        for basis in map(BASES.__getitem__, BASES):
            within, beyond = (support.of_norm(basis, norm).to_bytes(basis) for norm in (4.95, 5.05))
            assert policy.check(within, BASES).basis == basis.digest
            with pytest.raises(VectorError, match=message):
                policy.check(beyond, BASES)
            with pytest.raises(VectorError, match=message):  # and what another one admits
                policy.own(Policy().check(beyond, BASES), BASES)
        with pytest.raises(VectorError, match=r"norm 257, .* at most 256"):
            Policy().check(vector(values=(257, 0, 0)).to_bytes(BASIS), BASIS)

    @pytest.mark.parametrize("bound", [math.nan, -1, -math.inf, "1", None, np.float32("nan")])
    def test_what_bounds_nothing_is_refused(self, bound):
        with pytest.raises(VectorError, match="is not a bound"):
            Policy(max_norm=bound)


def accept(policy: Policy, sequence: int, basis=BASIS, **user: str) -> None:
    policy.record(policy.check(crc(sequence, basis, **user), basis, **user))


class TestSequences:
    def test_lower_is_refused_equal_and_higher_are_kept(self):
        policy = Policy()
        for sequence in (5, 5, 9, 65535):
            accept(policy, sequence)
        for sequence in (0, 5, 9, 65534):
            with pytest.raises(RollbackError, match=f"sequence {sequence}, but 65535"):
                policy.check(crc(sequence), BASIS)
        accept(Policy(), 1)

    def test_only_what_was_recorded_is_remembered(self):
        policy = Policy(max_norm=1)
        policy.check(crc(9), BASIS)
        for data in (damage(crc(9)), vector(9, (3, 0, 4)).to_bytes(BASIS), crc(9, OTHER)):
            with pytest.raises(VectorError):
                policy.check(data, BASIS)
        accept(policy, 1)

    def test_a_sequence_is_used_once_under_a_key(self):
        policy = Policy(keys=[VERIFY])
        first, second = (vector(9, (x, 0, 0)).to_bytes(BASIS, SIGN) for x in (0.5, 0.25))
        checked, other = policy.check(first, BASIS), policy.check(second, BASIS)
        policy.record(checked)
        policy.record(policy.check(first, BASIS))
        with pytest.raises(RollbackError, match=f"another vector with this sequence, 9, .* {VERIFY.id}"):
            policy.check(second, BASIS)
        with pytest.raises(RollbackError, match="another vector"):
            policy.record(other)

    def test_an_app_may_try_vectors_of_its_own_under_one_sequence(self):
        policy = Policy()
        for x in (0.5, 0.25, 0.5):
            policy.record(policy.check(vector(1, (x, 0, 0)).to_bytes(BASIS), BASIS))
        with pytest.raises(RollbackError):
            policy.check(crc(0), BASIS)

    def test_an_older_vector_that_was_checked_before_is_not_recorded(self):
        policy = Policy()
        older = policy.check(crc(2), BASIS)
        accept(policy, 9)
        with pytest.raises(RollbackError, match="sequence 2, but 9"):
            policy.record(older)
        with pytest.raises(RollbackError), policy.admit(crc(9), BASIS):
            accept(policy, 10)

    def test_threads_that_race_leave_the_highest_and_tell_the_others(self):
        policy = Policy()
        checked = [policy.check(crc(sequence), BASIS) for sequence in range(1, 200)]
        random.Random(0).shuffle(checked)

        def record(found):
            try:
                policy.record(found)
            except RollbackError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(record, checked))
        assert done[[found.sequence for found in checked].index(199)]
        assert not all(done)
        assert policy.highest(FACTORS) == 199

    def test_who_grows_is_not_set_back(self):
        """A sequence is of factors, stream and key, whatever the projection; equal ones under a key too."""
        policy, large = Policy(keys=[VERIFY]), BASES.basis(rank=2)
        with policy.admit(vector(9).to_bytes(BASIS, SIGN), BASES):
            pass
        assert policy.highest(FACTORS, key=VERIFY.id) == 9

        def grown(sequence: int) -> bytes:
            made = MicroVector(np.zeros(12), "int8", sequence, large.digest)
            return made.to_bytes(large, SIGN)

        for sequence, message in ((8, "sequence 8, but 9"), (9, "another vector with this sequence")):
            with pytest.raises(RollbackError, match=message):
                policy.check(grown(sequence), BASES)
        with policy.admit(grown(10), BASES) as found:
            assert found.basis == large.digest
        with pytest.raises(RollbackError, match="sequence 9, but 10"):
            policy.check(vector(9).to_bytes(BASIS, SIGN), BASES)


class TestUsers:
    @pytest.mark.parametrize("tag", TAGS)
    @pytest.mark.parametrize("until", [None, DAY])
    def test_a_frame_verifies_for_its_own_alone(self, tag, until):
        signer, error = TAGS[tag]
        policy = Policy(keys=[] if tag == "crc32" else KEYS, today=DAY)
        for user in ("", "alice", "jos\u00e9", "a" * 128):
            data = vector().to_bytes(BASIS, signer, user=user, until=until)
            found = policy.check(data, BASIS, user=user)
            assert (found, found.user, found.until) == (vector(), user, until)
            for other in {"", "alice", "bob", "Alice", "alice "} - {user}:
                with pytest.raises(error, match=r"is of (another user|a named user)"):
                    policy.check(data, BASIS, user=other)
        data = vector().to_bytes(BASIS, signer)
        with pytest.raises(error, match=r"another user than 'alice' \(pack --user 'alice'"):
            policy.check(data, BASIS, user="alice")
        with pytest.raises(error, match=r"damaged on its way|was altered"):
            policy.check(damage(data), BASIS, user="alice")

    @pytest.mark.parametrize("name", ["\ud800", "a" * 129])
    def test_a_name_that_no_policy_keeps(self, name):
        message = r"is not valid: it has (1|129) characters, where at most 128 of"
        with pytest.raises(FrameError, match=message):
            vector().to_bytes(BASIS, MAC, user=name)
        with pytest.raises(FrameError, match=message):
            Policy().check(crc(), BASIS, user=name)


class TestLastDays:
    DATA = vector(1).to_bytes(BASIS, MAC, until=DAY)

    @pytest.mark.parametrize("today", [date(2026, 1, 1), DAY, datetime(2026, 12, 31, 23, 59, tzinfo=UTC)])
    def test_until_its_end_it_is_accepted(self, today):
        assert Policy(keys=[MAC], today=today).check(self.DATA, BASIS).until == DAY
        assert Policy(keys=[MAC], today=lambda: today).check(self.DATA, BASIS) == vector(1)

    @pytest.mark.parametrize("today", [date(2027, 1, 1), date(2200, 1, 1)])
    def test_afterwards_it_is_refused(self, today):
        policy = Policy(keys=[MAC], today=today)
        with pytest.raises(ExpiredError, match=f"last day was 2026-12-31, and today is {today}"):
            policy.check(self.DATA, BASIS)
        with pytest.raises(SignatureError):  # a day that nobody signed is no day
            policy.check(damage(self.DATA), BASIS)

    def test_the_first_and_the_last_day(self):
        for day, number in ((date(2026, 1, 1), 0), (date(2205, 6, 7), 65535)):
            data = vector().to_bytes(BASIS, MAC, until=day)
            assert int.from_bytes(data[7:9], "little") == number
            assert Policy(keys=[MAC], today=day).check(data, BASIS).until == day
        data = vector().to_bytes(
            BASIS, MAC, until=datetime.now(UTC).date() + timedelta(days=1)
        )  # midnight may pass
        Policy(keys=[MAC]).check(data, BASIS)

    @pytest.mark.parametrize("day", [date(2025, 12, 31), date(2205, 6, 8), "2026-12-31", 5])
    def test_a_day_that_no_frame_names(self, day):
        with pytest.raises(VectorError, match="2026-01-01 to 2205-06-07"):
            vector().to_bytes(BASIS, until=day)

    @pytest.mark.parametrize("clock", [date(1970, 1, 1), date(9999, 1, 1), None, "today"])
    def test_a_clock_that_cannot_be_right_is_refused(self, clock):
        policy = Policy(keys=[MAC], today=lambda: clock)
        with pytest.raises(VectorError, match=r"clock says .*set the clock"):
            policy.check(self.DATA, BASIS)
        policy.check(vector().to_bytes(BASIS, MAC), BASIS)


class TestOrder:
    """Frames that break several rules: the error is that of the first one."""

    ERRORS = (
        *(FrameError, BasisMismatchError, ChecksumError, SignatureError),
        *(NonFiniteError, VectorError, RollbackError),
    )

    @pytest.mark.parametrize("broken", [c for n in (1, 2, 6) for c in itertools.combinations(range(7), n)])
    def test_the_first_broken_rule_raises(self, broken):
        """Rules as in the docstring, from 0: form, basis, tag, strength, finite, norm, sequence."""
        policy = Policy(keys=[MAC] if 3 in broken else [], max_norm=1)
        policy.record(Policy().check(crc(9), BASIS))
        values = [np.nan if 4 in broken else 0.0, 2.0 if 5 in broken else 0.5, 0.0]
        data = support.frame(
            OTHER.digest if 1 in broken else BASIS.digest,
            np.array(values, "<f4").tobytes(),
            sequence=8 if 6 in broken else 9,
        )
        if 2 in broken:
            data = damage(data)
        if 0 in broken:
            data = bytes([0x40]) + data[1:]
        with pytest.raises(VectorError) as caught:
            policy.check(data, BASIS)
        assert type(caught.value) is self.ERRORS[broken[0]]


def test_what_a_policy_let_through_is_pickled_whole():
    policy = Policy(today=DAY)
    found = policy.check(vector(7).to_bytes(BASIS, user="alice", until=DAY), BASIS, user="alice")
    for copied in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert vars(copied).keys() == vars(found).keys()
        assert (copied, copied.user, copied.until) == (found, "alice", DAY)
        assert not copied.values.flags.writeable
