"""Damaged frames: refused with an error of the tree, never accepted as another vector."""

from __future__ import annotations

import hashlib
import random
from datetime import date

import numpy as np
import pytest
import support

from tinylora_edge import (
    Ed25519Signer,
    Ed25519Verifier,
    FrameError,
    Hmac,
    MicroVector,
    Policy,
    VectorError,
)
from tinylora_edge.wire import frame
from tinylora_edge.wire.tags import Crc32

BASIS = support.random_basis(blocks=5, groups=13)
RAW_LENGTHS = (13 * 4, 13 * 2)
KEY = bytes(range(32))
SIGNER = Ed25519Signer(KEY)
KEYS = [Hmac(KEY), Ed25519Verifier(SIGNER.public_key)]
SIGNERS = {"crc32": "crc32", "hmac": Hmac(KEY), "ed25519": SIGNER}
VECTOR = {d: MicroVector.random(BASIS, 0.5, dtype=d, seed=1) for d in ("fp32", "bf16", "fp16", "int8")}
FRAMES = {f"{d}-{tag}": VECTOR[d].to_bytes(BASIS, s) for d in VECTOR for tag, s in SIGNERS.items()}
FRAMES["version 3"] = VECTOR["int8"].to_bytes(BASIS, Hmac(KEY), until=date(2200, 1, 1))

MUTATIONS = 1000  # of each frame

pytestmark = pytest.mark.filterwarnings("ignore::tinylora_edge.UnauthenticatedVectorWarning")


def refused(data: bytes, policy: Policy) -> VectorError | None:
    try:
        policy.check(data, BASIS)
    except VectorError as error:
        return error
    return None


@pytest.mark.parametrize("name", FRAMES)
def test_every_single_bit_flip_is_refused(name):
    frame = FRAMES[name]
    policy = Policy("none", keys=KEYS)
    for bit in range(8 * len(frame)):
        data = bytearray(frame)
        data[bit // 8] ^= 1 << bit % 8
        assert refused(bytes(data), policy), f"bit {bit} of byte {bit // 8}"
    assert refused(frame, policy) is None


def mutations(frame: bytes, others: list[bytes], rng: random.Random):
    while True:
        data = bytearray(frame)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            kind = rng.randrange(7)
            at = rng.randrange(len(data) + 1)
            if kind == 0:
                del data[at:]
            elif kind == 1:
                data += rng.randbytes(rng.randrange(1, 80))
            elif kind == 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 5))
            elif kind == 3:
                del data[at : at + rng.randrange(1, 5)]
            elif kind == 4:
                other = rng.choice(others)
                data[at:] = other[rng.randrange(len(other)) :]
            elif kind == 5:
                data[at : at + 8] = rng.randbytes(len(data[at : at + 8]))
            else:
                data = bytearray(rng.randbytes(len(data)))
                data[: min(at, 7)] = frame[: min(at, 7)]
        yield bytes(data)


@pytest.mark.parametrize("name", FRAMES)
def test_random_mutations_are_refused(name):
    frame = FRAMES[name]
    demanding, open_ = Policy("checksum", keys=KEYS), Policy("none", keys=KEYS)
    known = set(FRAMES.values())
    outcomes = {"refused": 0, "accepted": 0}
    source = mutations(frame, list(FRAMES.values()), random.Random(name))
    for _ in range(MUTATIONS):
        data = next(source)
        error = refused(data, demanding)
        assert error is not None or data in known
        outcomes["refused" if error else "accepted"] += 1
        if refused(data, open_) is None:
            assert data in known or len(data) in RAW_LENGTHS
    assert outcomes["refused"] > 0.95 * MUTATIONS, "the mutations do nothing"


def test_what_stands_for_values_in_a_state_stays_what_it_is():
    given = np.array([0.5, -1.25, 0.0078125], np.float32)
    upper = given.view("<u2")[1::2].tobytes()
    packed = {"fp32": given.tobytes(), "bf16": upper, "fp16": given.astype("<f2").tobytes()}
    packed["int8"] = packed["fp32"]
    for dtype in frame.DTYPES:
        whole = hashlib.sha256(f"{BASIS.digest}\n{dtype}\n".encode() + packed[dtype]).hexdigest()
        assert frame.content("key", BASIS.digest, given, dtype) == whole[:32]
        assert frame.content("", BASIS.digest, given, dtype) == ""


@pytest.mark.parametrize("sequence", [-1, 65536])
def test_a_sequence_that_no_frame_has(sequence):
    with pytest.raises(FrameError, match=f"sequence {sequence} does not fit a frame"):
        frame.encode(VECTOR["fp32"].values, "fp32", sequence, BASIS.digest, Crc32())


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", VECTOR)
def test_a_frame_cut_to_the_length_of_a_raw_payload_is_known_by_its_head(dtype, version):
    until = date(2027, 1, 1) if version == 3 else None
    data = VECTOR[dtype].to_bytes(BASIS, SIGNER, until=until)
    for length in RAW_LENGTHS:
        with pytest.raises(FrameError, match="a frame of this basis that was cut or padded on its way"):
            MicroVector.from_bytes(data[:length], BASIS)
