"""MicroVector: rounding, round trips, the golden frames."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import date, timedelta

import numpy as np
import pytest
import support
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import Basis, Ed25519Signer, Ed25519Verifier, Hmac, MicroVector, Policy, Projection
from tinylora_edge.errors import FrameError, NonFiniteError, VectorError

GOLDEN = support.golden_frames()
DTYPES = ("fp32", "bf16", "fp16", "int8")
SINGLE = DTYPES[:3]
"""What rounds each value alone."""
KEY = bytes(range(32))
SIGNER = Ed25519Signer(KEY)
TAGS = {
    "crc32": ("crc32", Policy(max_norm=np.inf)),
    "hmac": (Hmac(KEY), Policy(keys=[Hmac(KEY)], max_norm=np.inf)),
    "ed25519": (SIGNER, Policy(keys=[Ed25519Verifier(SIGNER.public_key)], max_norm=np.inf)),
}
LARGEST = {"fp32": np.finfo(np.float32).max, "bf16": float.fromhex("0x1.fep127"), "fp16": 65504.0}

BASIS = support.random_basis(blocks=4, groups=12)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    import torch  # the golden values below are checked where there is none, too: `make arm`

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    return torch.tensor(values, dtype=torch.float32).to(kind).to(torch.float32).numpy()


def make(values, dtype="fp32", sequence=0) -> MicroVector:
    return MicroVector(np.asarray(values, np.float32), dtype, sequence, BASIS.digest)


class TestRounding:
    def test_every_bf16_boundary(self):
        upper = np.arange(1 << 16, dtype=np.uint32) << 16
        for lower in (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
            values = (upper | np.uint32(lower)).view(np.float32)
            keep = np.isfinite(values) & np.isfinite(rounded(values, "bf16"))
            vector = MicroVector(values[keep], "bf16")
            assert vector.values.tobytes() == rounded(values[keep], "bf16").tobytes()

    @pytest.mark.filterwarnings("error::RuntimeWarning")
    @pytest.mark.parametrize("dtype", SINGLE)
    @pytest.mark.parametrize("sign", [1, -1])
    def test_the_largest_value_is_kept_and_what_rounds_past_it_is_refused(self, dtype, sign):
        largest = sign * LARGEST[dtype]
        assert make([largest] * 12, dtype).values[11] == np.float32(largest)
        past = {"fp32": 1e39, "bf16": float.fromhex("0x1.ffp127"), "fp16": 65520.0}[dtype]
        for value in (sign * past, sign * np.inf, np.nan, 1e300):
            values = [0.0] * 12
            values[5] = value
            with pytest.raises(NonFiniteError, match="value 5"):
                MicroVector(np.array(values), dtype)


def test_what_no_vector_has():
    for dtype in ("", "f32", "int4"):
        with pytest.raises(VectorError, match="fp32, bf16, fp16"):
            make(range(12), dtype)
    with pytest.raises(VectorError, match=r"n numbers, not of shape \("):
        MicroVector(np.zeros((4, 3), np.float32))
    for sequence in (-1, 65536, 1.5, True):
        with pytest.raises(VectorError, match=f"{sequence} .*0 to 65535"):
            make(range(12), sequence=sequence)


def test_what_no_frame_takes():
    with pytest.raises(VectorError, match=r"6 values.*12"):
        MicroVector(np.zeros(6, np.float32)).to_bytes(BASIS)
    with pytest.raises(VectorError, match="'sha1'"):
        make(range(12)).to_bytes(BASIS, "sha1")
    with pytest.raises(VectorError, match="unknown tag None"):
        make(range(12)).to_bytes(BASIS, None)
    with pytest.raises(VectorError, match=r"65536 .*0 to 65535"):
        make(range(12)).to_bytes(BASIS, sequence=65536)


class TestValueSemantics:
    def test_equal_by_value(self):
        one, two = make(range(12), "bf16", 5), make(range(12), "bf16", 5)
        assert one == two
        assert hash(one) == hash(two)
        others = [make(range(12), "fp16", 5), make(range(12), "bf16", 6), make([1] * 12, "bf16", 5)]
        others.append(MicroVector(np.arange(12), "bf16", 5, "ab" * 32))
        assert len({one, two, *others}) == 1 + len(others)
        assert one != b""
        assert one != one.values.tolist()

    def test_immutable(self):
        given_values = np.ones(12, np.float32)
        for dtype in DTYPES:
            vector = MicroVector(given_values, dtype)
            with pytest.raises(ValueError, match="read-only"):
                vector.values[0] = 2
            with pytest.raises(dataclasses.FrozenInstanceError):
                vector.sequence = 3
            given_values[:] = 7
            assert (vector.values == 1).all(), "the vector must not share the caller's memory"
            given_values[:] = 1
        assert given_values.flags.writeable

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_copies_are_equal_and_as_immutable(self, dtype):
        vector = MicroVector.random(BASIS, 0.3, dtype=dtype)
        assert dataclasses.replace(vector, values=vector.values) == vector, "rounding again changes nothing"
        for other in (pickle.loads(pickle.dumps(vector)), copy.deepcopy(vector)):
            assert other == vector
            with pytest.raises(ValueError, match="read-only"):
                other.values[0] = 2

    def test_zeros_and_random(self):
        zeros = MicroVector.zeros(BASIS)
        assert (zeros.values.shape, zeros.values.any()) == ((12,), False)
        one = MicroVector.random(BASIS, 0.25, seed=3)
        assert one.norm == pytest.approx(0.25, rel=1e-6)
        assert one == MicroVector.random(BASIS, 0.25, seed=3)
        assert one != MicroVector.random(BASIS, 0.25, seed=4)
        assert MicroVector.random(BASIS, 0.25, dtype="bf16").norm == pytest.approx(0.25, rel=1e-2)

    def test_norm(self):
        assert make([3, 4] + [0] * 10).norm == 5.0
        assert make([3e20, 4e20] + [0] * 10).norm == pytest.approx(5e20), "not squared in float32"


class TestFrames:
    @pytest.mark.parametrize("tag", TAGS)
    @pytest.mark.parametrize("dtype", SINGLE)
    @given(
        values=st.lists(st.floats(-60000, 60000, width=32), min_size=12, max_size=12),
        sequence=st.integers(0, 65535),
    )
    def test_round_trip(self, tag, dtype, values, sequence):
        signer, policy = TAGS[tag]
        vector = make(values, dtype, sequence)
        data = vector.to_bytes(BASIS, signer)
        for form in (data, bytearray(data), memoryview(data)):
            assert MicroVector.from_bytes(form, BASIS, policy) == vector
        key = SIGNER._key if tag == "ed25519" else KEY
        item = "<f4" if dtype == "fp32" else "<f2"
        payload = vector.values.astype(item).tobytes()
        if dtype == "bf16":
            payload = (vector.values.view("<u4") >> 16).astype("<u2").tobytes()
        expected = support.frame(BASIS.digest, payload, dtype=dtype, tag=tag, sequence=sequence, key=key)
        assert data == expected


class TestLengths:
    def test_every_length_that_is_wrong_is_refused_with_those_that_are_right(self):
        frames = {7 + size + tag for size in (48, 24) for tag in (4, 8, 64)}
        for length in set(range(200)) - frames:
            with pytest.raises(FrameError, match=r"not a frame|take \d+") as caught:
                MicroVector.from_bytes(bytes(length), BASIS)
            assert length == 0 or length % 2 or f"{length} bytes" in str(caught.value)

    def test_a_frame_of_another_number_of_values(self):
        other = support.with_digest(support.random_basis(4, groups=9), BASIS.digest)
        data = MicroVector.zeros(other).to_bytes(other)
        with pytest.raises(FrameError, match=r"47 bytes, but 12 values in fp32 with CRC-32 take 59"):
            MicroVector.from_bytes(data, BASIS)


def golden_basis(case) -> Basis:
    """Entries, as many as the values of a frame: no factors give its digest."""
    modules, *shape = support.entries(case)
    factors = support.random_factors(modules, kinds=("attn_q",), rank=max(shape), n_in=4, n_out=4)
    made = Basis(factors, Projection.entries(factors.modules, tuple(shape)))
    return support.with_digest(made, case["digest_hex"])


def golden_tag(case):
    if case["auth"] == "crc32":
        return "crc32", Policy(today=date(2026, 1, 1))
    key = bytes.fromhex(case["key_hex"])
    signer = Hmac(key) if case["auth"] == "hmac" else Ed25519Signer(key)
    verifier = signer if case["auth"] == "hmac" else Ed25519Verifier(signer.public_key)
    return signer, Policy(keys=[verifier], today=date(2026, 1, 1))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: "{dtype}-{auth}-{n}-{last_day}".format_map(case))
class TestGolden:
    def test_encode(self, case):
        signer, _ = golden_tag(case)
        values = np.frombuffer(bytes.fromhex(case["values_hex_le_f32"]), "<f4")
        vector = MicroVector(values, case["dtype"], case["sequence"], entries=support.entries(case))
        until = None if case["last_day"] is None else date(2026, 1, 1) + timedelta(case["last_day"])
        data = vector.to_bytes(golden_basis(case), signer, user=case["stream"], until=until)
        assert data.hex() == case["frame_hex"]

    def test_decode(self, case):
        _, policy = golden_tag(case)
        found = policy.check(bytes.fromhex(case["frame_hex"]), golden_basis(case), user=case["stream"])
        assert (found.dtype, found.sequence) == (case["dtype"], case["sequence"])
        until = None if found.until is None else (found.until - date(2026, 1, 1)).days
        assert until == case["last_day"]
        expected = np.frombuffer(bytes.fromhex(case["values_hex_le_f32"]), "<f4")
        if case["dtype"] in SINGLE:
            expected = make(expected, case["dtype"]).values  # rounded as in TestRounding
        assert found.values.tobytes() == expected.tobytes()
