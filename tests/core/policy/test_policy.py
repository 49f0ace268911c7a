"""Policy: every rule, their order, streams, and that a refusal changes nothing."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import ClassVar

import numpy as np
import pytest
import support
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinylora_edge import (
    BasisMismatchError,
    ChecksumError,
    Ed25519Signer,
    Ed25519Verifier,
    FrameError,
    Hmac,
    MicroVector,
    NonFiniteError,
    Policy,
    RollbackError,
    SignatureError,
    UnauthenticatedVectorWarning,
    VectorError,
)

BASIS = support.random_basis(groups=3)
OTHER = support.random_basis(groups=3, seed=43)
KEY, STRANGER = b"k" * 32, b"s" * 32
MAC, SIGN = Hmac(KEY), Ed25519Signer(KEY)
VERIFY = Ed25519Verifier(SIGN.public_key)

pytestmark = pytest.mark.filterwarnings("error")


def vector(sequence: int = 0, values=(0.5, -0.25, 0.125)) -> MicroVector:
    return MicroVector(np.array(values, np.float32)[:, None], "fp32", sequence)


def crc(sequence: int = 0, basis=BASIS, stream: str = "") -> bytes:
    return vector(sequence).to_bytes(basis, stream=stream)


def damage(data: bytes, position: int = -1) -> bytes:
    position %= len(data)
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


class TestRule1Form:
    @pytest.mark.parametrize("data", [b"", b"x", bytes(5), bytes(7), bytes(14), bytes(1 << 16)])
    def test_length(self, data):
        with pytest.raises(FrameError):
            Policy().check(data, BASIS)

    @pytest.mark.parametrize("first", [0x00, 0x10, 0x40, 0xE0, 0xF0])
    def test_version(self, first):
        with pytest.raises(FrameError, match=f"version {first >> 4}"):
            Policy().check(bytes([first]) + crc()[1:], BASIS)

    @pytest.mark.parametrize("first", [0x2C, 0x2F, 0x3D])
    def test_unknown_dtype_or_tag(self, first):
        with pytest.raises(FrameError, match=f"{first:#04x}"):
            Policy().check(bytes([first]) + crc()[1:], BASIS)

    def test_padded(self):
        with pytest.raises(FrameError, match=r"25 bytes, but 3 values in fp32 with CRC-32 take 23"):
            Policy().check(crc() + b"\0\0", BASIS)


class TestRule2Basis:
    def test_the_frame_names_another(self):
        with pytest.raises(BasisMismatchError, match=f"{OTHER.id}.*{BASIS.id}"):
            Policy().check(crc(basis=OTHER), BASIS)

    def test_a_digest_that_differs_behind_the_first_4_bytes_fails_the_tag(self):
        twin = support.with_digest(support.random_basis(groups=3), BASIS.digest[:8] + "0" * 56)
        for signer, error in (("crc32", ChecksumError), (MAC, SignatureError), (SIGN, SignatureError)):
            data = vector().to_bytes(twin, signer)
            with pytest.raises(error):
                Policy(keys=[MAC, VERIFY]).check(data, BASIS)


class TestRule3TagVerifies:
    def test_checksum(self):
        data = damage(crc())
        with pytest.raises(ChecksumError) as caught:
            Policy().check(data, BASIS)
        assert data[-4:].hex() in str(caught.value)
        assert crc()[-4:].hex() in str(caught.value)

    @pytest.mark.parametrize("signer", [MAC, SIGN], ids=["mac", "signature"])
    def test_under_a_trusted_key(self, signer):
        policy = Policy(
            keys=[Hmac(STRANGER), VERIFY, MAC, Ed25519Verifier(Ed25519Signer(STRANGER).public_key)]
        )
        data = vector(3).to_bytes(BASIS, signer)
        assert policy.check(data, BASIS) == vector(3)
        with pytest.raises(SignatureError, match="2 trusted keys"):
            policy.check(damage(data), BASIS)

    @pytest.mark.parametrize("signer", [Hmac(STRANGER), Ed25519Signer(STRANGER)], ids=["mac", "signature"])
    def test_not_under_a_stranger_s(self, signer):
        with pytest.raises(SignatureError, match="does not verify"):
            Policy(keys=[MAC, VERIFY]).check(vector().to_bytes(BASIS, signer), BASIS)

    @pytest.mark.parametrize(("signer", "other"), [(MAC, VERIFY), (SIGN, MAC)], ids=["mac", "signature"])
    @pytest.mark.parametrize("require", ["none", "checksum"])
    def test_that_no_key_can_check_even_where_none_is_required(self, require, signer, other):
        data = vector().to_bytes(BASIS, signer)
        for keys in ([], [other]):
            with pytest.raises(SignatureError, match=r"no .* key to check it"):
                Policy(require, keys=keys).check(data, BASIS)


class TestRule4Strength:
    FRAMES: ClassVar = {
        "raw": vector().to_bytes(BASIS, None),
        "crc": vector().to_bytes(BASIS),
        "mac": vector().to_bytes(BASIS, MAC),
        "signature": vector().to_bytes(BASIS, SIGN),
    }
    LEVELS: ClassVar = {"none": "raw", "checksum": "crc", "mac": "mac", "signature": "signature"}

    @pytest.mark.parametrize("require", LEVELS)
    @pytest.mark.parametrize("form", FRAMES)
    def test_at_least_what_is_required(self, require, form):
        policy = Policy(require, keys=[MAC, VERIFY])
        forms = list(self.FRAMES)
        if forms.index(form) >= forms.index(self.LEVELS[require]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnauthenticatedVectorWarning)
                assert policy.check(self.FRAMES[form], BASIS) == vector()
        else:
            error = ChecksumError if require == "checksum" else SignatureError
            with pytest.raises(error, match=f"requires a {require}"):
                policy.check(self.FRAMES[form], BASIS)

    @pytest.mark.parametrize(
        ("keys", "level"), [([], "none"), ([VERIFY], "signature"), ([MAC], "mac"), ([VERIFY, MAC], "mac")]
    )
    def test_keys_imply_what_they_check(self, keys, level):
        """As on the command line: who hands over a key does not mean checksums, which anybody makes."""
        policy = Policy(keys=keys)
        assert policy.require == level
        if keys:
            for form in ("raw", "crc"):
                with pytest.raises(SignatureError, match=f"requires a {level}"):
                    policy.check(self.FRAMES[form], BASIS)
            assert Policy("none", keys=keys).check(self.FRAMES["crc"], BASIS) == vector()

    def test_unknown(self):
        with pytest.raises(VectorError, match=r"'hmac'.*none, checksum, mac, signature"):
            Policy("hmac")

    @pytest.mark.parametrize(("require", "keys"), [("mac", []), ("signature", []), ("signature", [MAC])])
    def test_that_no_key_can_satisfy(self, require, keys):
        with pytest.raises(VectorError, match=f"'{require}' needs a key"):
            Policy(require, keys=keys)

    def test_a_signature_key_satisfies_a_demand_for_a_mac(self):
        policy = Policy("mac", keys=[VERIFY])
        assert policy.check(self.FRAMES["signature"], BASIS) == vector()


class TestRule5Finite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("tag", ["crc32", "hmac", "ed25519"])
    def test_in_frames(self, value, tag):
        payload = np.array([0, value, 0], "<f4").tobytes()
        key = {"crc32": None, "hmac": KEY, "ed25519": Ed25519PrivateKey.from_private_bytes(KEY)}[tag]
        data = support.frame(BASIS.digest, payload, tag=tag, key=key)
        with pytest.raises(NonFiniteError, match="value 1"):
            Policy("none", keys=[MAC, VERIFY]).check(data, BASIS)

    @pytest.mark.parametrize(("dtype", "payload"), [("bf16", "807f"), ("bf16", "c07f"), ("fp16", "007c")])
    def test_in_short_dtypes(self, dtype, payload):
        data = support.frame(BASIS.digest, bytes.fromhex(payload + "0000" * 2), dtype=dtype)
        with pytest.raises(NonFiniteError, match="value 0"):
            Policy().check(data, BASIS)

    def test_in_raw_payloads(self):
        policy = Policy()
        with pytest.raises(NonFiniteError):
            policy.check(np.array([0, 0, np.nan], "<f4").tobytes(), BASIS)


class TestRule6Norm:
    def test_the_bound_is_included(self):
        data = vector(values=(3, 0, 4)).to_bytes(BASIS)
        assert Policy(max_norm=5).check(data, BASIS).norm == 5
        with pytest.raises(VectorError, match=r"norm is 5, .* at most 4.99"):
            Policy(max_norm=4.99).check(data, BASIS)

    def test_is_not_squared_in_float32(self):
        data = vector(values=(3e38, 3e38, 3e38)).to_bytes(BASIS)
        assert Policy().check(data, BASIS).norm == pytest.approx(3e38 * math.sqrt(3))
        with pytest.raises(VectorError, match=r"5.196e\+38"):
            Policy(max_norm=5e38).check(data, BASIS)

    def test_counts_raw_payloads_too(self):
        with pytest.raises(VectorError, match="norm"):
            Policy(max_norm=1).check(vector(values=(3, 0, 4)).to_bytes(BASIS, None), BASIS)

    @pytest.mark.parametrize("bound", [math.nan, -1, -math.inf, "1", None, np.float32("nan")])
    def test_what_bounds_nothing_is_refused(self, bound):
        with pytest.raises(VectorError, match="bounds nothing"):
            Policy(max_norm=bound)

    def test_no_bound_and_one_of_zero(self):
        large = vector(values=(3e38, 0, 0)).to_bytes(BASIS)
        assert Policy(max_norm=math.inf).check(large, BASIS).norm > 1e38
        with pytest.raises(VectorError, match="norm"):
            Policy(max_norm=np.float64(0)).check(large, BASIS)


class TestRule7Sequence:
    def accept(self, policy, sequence, basis=BASIS, **stream):
        policy.record(policy.check(crc(sequence, basis, **stream), basis, **stream), basis, **stream)

    def test_lower_is_refused_equal_and_higher_are_kept(self):
        policy = Policy()
        self.accept(policy, 5)
        self.accept(policy, 5)
        self.accept(policy, 9)
        self.accept(policy, 65535)
        for sequence in (0, 5, 9, 65534):
            with pytest.raises(RollbackError, match=f"sequence {sequence}, but 65535"):
                policy.check(crc(sequence), BASIS)

    def test_check_alone_remembers_nothing(self):
        policy = Policy()
        policy.check(crc(9), BASIS)
        policy.check(crc(5), BASIS)
        self.accept(policy, 5)
        policy.check(crc(9), BASIS)
        policy.check(crc(7), BASIS)

    def test_a_refused_frame_remembers_nothing(self):
        policy = Policy(max_norm=1)
        for data in (damage(crc(9)), vector(9, (3, 0, 4)).to_bytes(BASIS), crc(9, OTHER)):
            with pytest.raises(VectorError):
                policy.check(data, BASIS)
        self.accept(policy, 1)

    def test_recording_an_older_vector_is_refused_and_does_not_lower_the_mark(self):
        """Another thread has applied a later one since this one was checked."""
        policy = Policy()
        older = policy.check(crc(2), BASIS)
        self.accept(policy, 9)
        with pytest.raises(RollbackError, match="sequence 2, but 9"):
            policy.record(older, BASIS)
        with pytest.raises(RollbackError), policy.admit(crc(9), BASIS):
            self.accept(policy, 10)
        with pytest.raises(RollbackError):
            policy.check(crc(9), BASIS)

    def test_streams_and_bases_are_apart(self):
        policy = Policy()
        self.accept(policy, 9, stream="alice")
        self.accept(policy, 3, stream="bob")
        self.accept(policy, 1)
        self.accept(policy, 0, OTHER, stream="alice")
        with pytest.raises(RollbackError, match="9 was already accepted from stream 'alice'"):
            policy.check(crc(8, stream="alice"), BASIS, stream="alice")
        with pytest.raises(RollbackError, match="from stream 'bob'"):
            policy.check(crc(2, stream="bob"), BASIS, stream="bob")
        policy.check(crc(4, stream="bob"), BASIS, stream="bob")

    def test_policies_are_apart(self):
        self.accept(Policy(), 9)
        self.accept(Policy(), 1)

    def test_raw_payloads_have_none(self):
        policy = Policy()
        self.accept(policy, 9)
        with pytest.warns(UnauthenticatedVectorWarning):
            raw = policy.check(vector().to_bytes(BASIS, None), BASIS)
        policy.record(raw, BASIS)
        with pytest.raises(RollbackError):
            policy.check(crc(8), BASIS)


class TestOrder:
    """Frames that break several rules: the error is that of the first one."""

    ERRORS = (
        FrameError,
        BasisMismatchError,
        ChecksumError,
        SignatureError,
        NonFiniteError,
        VectorError,
        RollbackError,
    )

    @pytest.mark.parametrize("broken", [c for n in (1, 2, 3, 6) for c in itertools.combinations(range(7), n)])
    def test_the_first_broken_rule_raises(self, broken):
        """Rules as in the docstring, from 0: form, basis, tag, strength, finite, norm, sequence."""
        policy = Policy("mac" if 3 in broken else "none", keys=[MAC], max_norm=1)
        policy.record(vector(9), BASIS)
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

    def test_nothing_broken(self):
        policy = Policy("checksum", keys=[MAC], max_norm=1)
        policy.record(vector(9), BASIS)
        data = support.frame(BASIS.digest, np.array([0, 0.5, 0], "<f4").tobytes(), sequence=9)
        assert policy.check(data, BASIS) == vector(9, (0, 0.5, 0))


class TestWarning:
    RAW = vector().to_bytes(BASIS, None)

    def test_a_raw_payload_warns_once_a_policy(self):
        policy = Policy()
        with pytest.warns(UnauthenticatedVectorWarning, match="no checksum") as caught:
            vectors = [policy.check(self.RAW, BASIS) for _ in range(3)]
        assert vectors == [vector()] * 3
        assert len(caught) == 1
        with pytest.warns(UnauthenticatedVectorWarning):
            Policy().check(self.RAW, BASIS)

    def test_a_refused_one_does_not_use_the_warning_up(self):
        policy = Policy(max_norm=0.1)
        with pytest.raises(VectorError, match="norm"):
            policy.check(self.RAW, BASIS)
        with pytest.warns(UnauthenticatedVectorWarning):
            policy.check(bytes(12), BASIS)

    def test_points_at_the_caller(self):
        with pytest.warns(UnauthenticatedVectorWarning) as caught:
            MicroVector.from_bytes(self.RAW, BASIS)
        assert caught[0].filename == __file__

    def test_frames_do_not_warn(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Policy().check(crc(), BASIS)
