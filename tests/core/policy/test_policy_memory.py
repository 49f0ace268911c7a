"""What a policy remembers: sequences that are used once, threads that race, and what a pickle takes along."""

from __future__ import annotations

import copy
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import support

from tinylora_edge import (
    Ed25519Signer,
    Ed25519Verifier,
    Hmac,
    MicroVector,
    Policy,
    RollbackError,
    SignatureError,
)

BASIS = support.random_basis(groups=3)
KEY = b"k" * 32
MAC, SIGN = Hmac(KEY), Ed25519Signer(KEY)
VERIFY = Ed25519Verifier(SIGN.public_key)


def vector(sequence: int = 0, values=(0.5, -0.25, 0.125)) -> MicroVector:
    return MicroVector(np.array(values, np.float32)[:, None], "fp32", sequence)


def crc(sequence: int = 0) -> bytes:
    return vector(sequence).to_bytes(BASIS)


class TestSequences:
    @pytest.mark.parametrize("sequence", [0, 1, 9])
    def test_a_sequence_is_used_once_under_a_key(self, sequence):
        policy = Policy(keys=[VERIFY])
        first, second = (vector(sequence, (x, 0, 0)).to_bytes(BASIS, SIGN) for x in (0.5, 0.25))
        checked, other = policy.check(first, BASIS), policy.check(second, BASIS)
        policy.record(checked, BASIS)
        policy.record(policy.check(first, BASIS), BASIS)
        with pytest.raises(RollbackError, match=f"another vector with this sequence .* {VERIFY.id}"):
            policy.check(second, BASIS)
        with pytest.raises(RollbackError, match="another vector"):
            policy.record(other, BASIS)
        policy.check(first, BASIS)
        policy.check(vector(sequence, (0.25, 0, 0)).to_bytes(BASIS, SIGN, stream="bob"), BASIS, stream="bob")

    def test_an_app_may_try_vectors_of_its_own_under_one_sequence(self):
        policy = Policy()
        for x in (0.5, 0.25, 0.5):
            policy.record(policy.check(vector(1, (x, 0, 0)).to_bytes(BASIS), BASIS), BASIS)

    def test_what_nobody_numbered_is_remembered_too(self):
        made = MicroVector(vector().values)
        assert made.sequence == MicroVector.zeros(BASIS).sequence == 1
        policy = Policy()
        policy.record(policy.check(made.to_bytes(BASIS), BASIS), BASIS)
        with pytest.raises(RollbackError):
            policy.check(crc(0), BASIS)

    def test_threads_that_race_leave_the_highest_and_tell_the_others(self):
        policy = Policy()
        checked = [policy.check(crc(sequence), BASIS) for sequence in range(1, 200)]
        random.Random(0).shuffle(checked)

        def record(found):
            try:
                policy.record(found, BASIS)
            except RollbackError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(record, checked))
        assert done[[found.sequence for found in checked].index(199)]
        assert not all(done)
        with pytest.raises(RollbackError, match="199"):
            policy.check(crc(198), BASIS)


class TestPickles:
    def test_a_key_is_in_none(self):
        with pytest.raises(SignatureError, match="a MAC key is a secret"):
            pickle.dumps(MAC)
        with pytest.raises(SignatureError, match="secret"):
            copy.deepcopy(MAC)

    def test_a_policy_goes_without_its_keys_and_refuses_what_needs_one(self):
        policy = Policy("mac", keys=[MAC])
        data = vector(5).to_bytes(BASIS, MAC)
        policy.record(policy.check(data, BASIS), BASIS)
        pickled = pickle.dumps(policy)
        assert KEY not in pickled
        there = pickle.loads(pickled)
        with pytest.raises(SignatureError, match="no HMAC key"):
            there.check(data, BASIS)
        with pytest.raises(SignatureError, match="requires a mac"):
            there.check(crc(9), BASIS)

    def test_what_was_accepted_goes_along(self):
        policy = Policy()
        policy.record(policy.check(crc(5), BASIS), BASIS)
        there = pickle.loads(pickle.dumps(policy))
        with pytest.raises(RollbackError):
            there.check(crc(4), BASIS)
        there.record(there.check(crc(6), BASIS), BASIS)
