"""Harnesses of what carries a vector, and of what remembers it: frames, texts, the state of a policy."""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from dataclasses import replace
from random import Random

import numpy as np
import support
from harness import Harness, folder
from mutations import as_json, changed

from tinylora_edge import Bases, Basis, Ed25519Signer, Ed25519Verifier, Hmac, MicroVector, Policy
from tinylora_edge.errors import TinyLoraError
from tinylora_edge.wire import frame, text
from tinylora_edge.wire.values import BITS, SCALED

BASES = Bases(support.random_factors(blocks=5))
BASIS, ENTRIES = BASES.basis(numbers=13), BASES.basis(rank=1)
SECRET = bytes(range(32))
STRANGE = (0.0, -0.0, math.nan, math.inf, 1e38, 1e-40)
SIGNER = Ed25519Signer(SECRET)
KEYS = [Hmac(SECRET), Ed25519Verifier(SIGNER.public_key)]
VECTORS = [MicroVector.random(BASIS, 0.5, dtype=dtype, seed=1) for dtype in ("fp32", "bf16", "fp16")]
SIGNED = [vector.to_bytes(BASIS, signer) for vector in VECTORS for signer in (Hmac(SECRET), SIGNER)]
"""Every frame that was ever made under the keys: whatever else verifies is a forgery."""


def _make_frame(random: Random) -> bytes:
    kind = random.randrange(8)
    if kind == 0:
        return random.choice(SIGNED)
    if kind == 1:
        return random.choice(VECTORS[:2]).to_bytes(BASIS)[7:-4]
    dtype = random.choice(list(support.DTYPE_CODES))
    if dtype in BITS:
        count, most = random.choice((15, 15, 15, 14, 60)), random.choice((0x80, 0x80, 0xF9))
        scales = bytes(random.randrange(most) for _ in range(15))
        packed = random.randrange(1 << count * BITS[dtype]).to_bytes((count * BITS[dtype] + 7) // 8, "little")
        return _framed(random, ENTRIES, scales + packed, dtype)
    width = {"fp32": 4, "int8": 1}.get(dtype, 2)
    count = random.choice((13, 13, 13, 12, 14, 0))
    payload = random.randbytes(width * count)
    if dtype == "int8":
        payload = random.randbytes(3) + payload + bytes(1 - count % 2)
    elif kind > 4:  # what bits of floats seldom are by chance
        strange = np.array([random.choice(STRANGE) for _ in range(count)])
        with np.errstate(all="ignore"):
            payload = strange.astype("<f4" if width == 4 else "<f2").tobytes()
    return _framed(random, BASIS, payload, dtype)


def _framed(random: Random, basis: Basis, payload: bytes, dtype: str) -> bytes:
    return support.frame(
        basis.digest,
        payload,
        dtype=dtype,
        tag=random.choice(("crc32", "crc32", "hmac")),  # the latter of a stranger
        sequence=random.randrange(1 << 16),
        key=b"s" * 32,
        version=random.choice((2, 2, 3)),
        until=random.choice((0, 1, 65535, random.randrange(1 << 16))),
    )


def _mend_frame(data: bytes) -> bytes:
    """Name the basis, and close the frame with a checksum that matches."""
    if len(data) < 11:
        return data
    basis, at = (ENTRIES, 2) if data[0] >> 4 > 3 else (BASIS, 1)
    digest = bytes.fromhex(basis.digest)
    body = bytes([data[0] & 0xF3]) + data[1:at] + digest[:4] + data[at + 4 : -4]
    return body + zlib.crc32(frame.message("", digest, body)).to_bytes(4, "little")


def _read_frame(data: bytes) -> None:
    refusals = 0
    for policy in _policies:
        try:
            vector = policy.check(data, BASES)
        except TinyLoraError as error:
            refusals, last = refusals + 1, error
            continue
        assert np.isfinite(vector.values).all()
        basis = ENTRIES if vector.dtype in BITS else BASIS
        assert vector.values.shape == (basis.size,)
        assert vector.basis == basis.digest
        assert not vector.verified_by or data in SIGNED, "a forgery"
        assert bool(vector.verified_by) == (policy is _policies[-1])
        if not vector.verified_by and vector.dtype not in SCALED:  # of which one vector has several forms
            assert vector.to_bytes(BASIS, until=vector.until) == data
        assert replace(vector, values=vector.values).values.tobytes() == vector.values.tobytes()
    if refusals == len(_policies):
        raise last


_policies = [Policy(), Policy(max_norm=10), Policy(keys=KEYS)]


def _make_text(random: Random) -> bytes:
    data = random.choice([_make_frame(random), random.randbytes(random.randrange(200))])
    out = text.encode(data, scheme=random.random() < 0.5) if random.random() < 0.5 else data.hex()
    if random.random() < 0.3:
        out = "\n".join(out[at : at + 20] for at in range(0, len(out), 20))
    if random.random() < 0.2:
        out = random.choice((out.upper(), out + "=" * random.randrange(4), f" {out}\n", out[:-1]))
    return out.encode()


def _read_text(data: bytes) -> None:
    text.is_text(data)
    found = text.decode(data)
    for again in (found.hex(), text.encode(found)):
        if found and (again == found.hex() or not re.fullmatch("[0-9A-Fa-f]+", again)):
            assert text.decode(again) == text.decode(text.SCHEME + again) == found


def _make_state(random: Random) -> bytes:
    content = hashlib.sha256(b"").hexdigest()[:32]
    tree = {BASIS.factors.digest: {"": {"": "5:"}, "hmac:00112233": {"alice": f"65535:{content}", "b": "0:"}}}
    if random.random() < 0.1:  # an older version
        tree = {BASIS.factors.digest: {"": {"": 5, "alice": 7}}}  # type: ignore[dict-item]
    return _mend_state(as_json({"format": 4, "sha256": "", "accepted": changed(tree, random)}))


def _mend_state(data: bytes) -> bytes:
    try:
        document = json.loads(data)
        body = json.dumps(document["accepted"], sort_keys=True, separators=(",", ":"))
        document["sha256"] = hashlib.sha256(body.encode()).hexdigest()
        return json.dumps(document).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return data


def _read_state(data: bytes) -> None:
    path = folder() / "state"
    path.write_bytes(data)
    policy = Policy(state=path)
    frame = VECTORS[0].to_bytes(BASIS)
    try:
        policy.record(policy.check(frame, BASIS))
    finally:
        path.unlink()
    assert Policy.check(policy, frame, BASIS).sequence == 1


HARNESSES = [
    Harness("frame", _make_frame, _read_frame, _mend_frame),
    Harness("text", _make_text, _read_text),
    Harness("policy_state", _make_state, _read_state, _mend_state),
]
