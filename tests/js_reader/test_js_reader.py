"""A reader in JavaScript, written from docs/FORMAT.md alone: browsers and Node read what is written here."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

from tinylora_edge import Ed25519Signer, Hmac, MicroVector, Policy, VectorError
from tinylora_edge.wire import expiry

HERE = Path(__file__).parent
KEY = bytes(range(32))
PUBLIC = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"


def read(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the reader says of each job: see run.mjs."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    done = subprocess.run(
        ["node", str(HERE / "run.mjs")], input=json.dumps(jobs), capture_output=True, text=True, check=False
    )
    if "Ed25519" in done.stderr and "Unrecognized algorithm" in done.stderr:
        pytest.skip("this node has no Ed25519 in WebCrypto: it takes version 20")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(found) == len(jobs)
    return found


def golden(name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((support.GOLDEN / f"{name}.json").read_text("utf-8"))[name]
    return entries


def test_golden_frames() -> None:
    entries = golden("frames")
    jobs = []
    for entry in entries:
        job = {
            "data": entry["frame_hex"],
            "n": len(entry["values"]),
            "digest": entry["digest_hex"],
            "stream": entry.get("stream", ""),
            "today": entry.get("until") or 0,
            "hmac": f"{1:064x}",
            "ed25519": PUBLIC,
        }
        jobs += [job, job | {"stream": "bob"}, job | {"today": 1 << 16}]
    found = read(jobs)
    for entry, own, other, late in zip(entries, found[::3], found[1::3], found[2::3], strict=True):
        vector = MicroVector(np.array(entry["values"])[:, None], entry["dtype"], entry["sequence"])
        version = entry["version"]
        assert own == {
            "version": version,
            "dtype": entry["dtype"],
            "kind": support.TAG_CODES[entry["auth"]],
            "sequence": 7,
            "until": entry.get("until"),
            "values": vector.values.tobytes().hex(),
        }
        wrong = {"crc32": "checksum", "hmac": "mac", "ed25519": "signature"}[entry["auth"]]
        assert other == {"refused": wrong}
        assert late == ({"refused": "expired"} if version == 3 else own)


def test_its_verdict_on_damaged_frames_is_ours() -> None:
    basis = support.random_basis(blocks=5, groups=13)
    policy = Policy("checksum", keys=[Hmac(KEY)], today=expiry.day_date(32768))
    rng = random.Random(0)
    whole = []
    for dtype in ("fp32", "bf16", "fp16", "int8"):
        for signer in ("crc32", Hmac(KEY), Ed25519Signer(KEY)):
            drawn = MicroVector(
                MicroVector.random(basis, 0.5, seed=len(whole)).values, dtype, rng.getrandbits(16)
            )
            until = expiry.day_date(rng.getrandbits(16))
            whole += [drawn.to_bytes(basis, signer), drawn.to_bytes(basis, signer, until=until)]
    frames = []
    for _ in range(1500):
        data = bytearray(rng.choice(whole))
        if rng.random() < 0.7:
            at = rng.randrange(len(data))
            data[at : at + 1] = rng.choice((b"", bytes([data[at] ^ 1 << rng.randrange(8)]), rng.randbytes(3)))
        frames.append(bytes(data))
    shared = {"n": 13, "digest": basis.digest, "today": 32768, "hmac": KEY.hex()}
    found = read([{"data": data.hex(), **shared} for data in frames])
    accepts = 0
    for data, verdict in zip(frames, found, strict=True):
        try:
            vector = policy.check(data, basis)
        except VectorError:
            assert "refused" in verdict, data.hex()
            continue
        accepts += 1
        assert verdict["values"] == vector.values.tobytes().hex()
    assert 100 < accepts < 1000
