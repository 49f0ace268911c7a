"""A reader in JavaScript, written from docs/FORMAT.md alone: browsers and Node read what is written here."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

from tinylora_edge import Bases, MicroVector, Projection
from tinylora_edge.formats.side_tensors import save_bases

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


def test_golden_frames() -> None:
    entries = json.loads((support.GOLDEN / "frames.json").read_text("utf-8"))["frames"]
    jobs = []
    for entry in entries:
        job = {
            "data": entry["frame_hex"],
            "n": entry["n"],
            "digest": entry["digest_hex"],
            "stream": entry["stream"],
            "today": entry["last_day"] or 0,
            "ed25519": PUBLIC,
        }
        job["hmac"] = entry["key_hex"] or KEY.hex()
        jobs += [job, job | {"stream": "bob"}, job | {"today": 1 << 16}]
    found = read(jobs)
    for entry, own, other, late in zip(entries, found[::3], found[1::3], found[2::3], strict=True):
        values = np.frombuffer(bytes.fromhex(entry["values_hex_le_f32"]), "<f4")
        vector = MicroVector(values, entry["dtype"], entry["sequence"])
        dated = entry["last_day"] is not None
        assert own == {
            "version": 3 if dated else 2,
            "dtype": entry["dtype"],
            "kind": support.TAG_CODES[entry["auth"]],
            "sequence": 7,
            "until": entry["last_day"],
            "values": vector.values.tobytes().hex(),
        }
        wrong = {"crc32": "checksum", "hmac": "mac", "ed25519": "signature"}[entry["auth"]]
        assert other == {"refused": wrong}
        assert late == ({"refused": "expired"} if dated else own)


@pytest.mark.parametrize("number", [0, 1])
def test_golden_bases(tmp_path: Path, number: int) -> None:
    bases, golden = support.golden_models()[number]
    save_bases(bases, tmp_path / "basis.gguf")
    shared = {"bases": str(tmp_path / "basis.gguf")}
    frames = [support.golden_frame(entry).hex() for entry in golden["bases"]]
    about, *found = read([shared, *({"data": data, **shared} for data in frames)])
    assert (about["factors"], about["ids"]) == (golden["factors"], list(bases))
    for entry, said in zip(golden["bases"], found, strict=True):
        assert (said["descriptor"], said["digest"]) == (entry["descriptor"], entry["digest"])
        support.assert_golden(entry, "r", bytes.fromhex(said["r"]))


def test_bases_of_any_factors(tmp_path: Path) -> None:
    for position, fields in enumerate(({"rank": 8, "factor_dtype": np.float16}, {"experts": 3}, {"rank": 1})):
        factors = support.random_factors(**fields)
        named = Projection.random(factors.modules, 4, 3, "structured", (1 << 64) - 1, min(2, factors.rank))
        bases = Bases(factors, (support.learned(factors, 5), named))
        save_bases(bases, tmp_path / f"{position}")
        shared = {"bases": str(tmp_path / f"{position}")}
        every = [bases[basis_id] for basis_id in bases]
        vectors = [MicroVector.random(basis, 0.5, seed=1) for basis in every]
        jobs = [{"data": v.to_bytes(b).hex(), **shared} for v, b in zip(vectors, every, strict=True)]
        for basis, vector, said in zip(every, vectors, read(jobs), strict=True):
            assert said["digest"] == basis.digest
            assert said["r"] == basis.R(vector).tobytes().hex()
        far = bases.basis(rank=1)
        beyond = MicroVector(np.full(far.size, 3e38)).to_bytes(far).hex()
        other = support.random_basis(rng=9)
        strange = MicroVector.zeros(other).to_bytes(other).hex()
        said = read([{"data": data, **shared} for data in (beyond, strange)])
        assert said == [{"refused": "norm"}, {"refused": "basis"}]


def test_forged_projections(tmp_path: Path) -> None:
    for name, descriptors in support.FORGED.items():
        support.save_forged(descriptors, tmp_path / name)
    found = read([{"bases": str(tmp_path / name)} for name in support.FORGED])
    assert [name for name, said in zip(support.FORGED, found, strict=True) if "refused" not in said] == []
