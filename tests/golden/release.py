"""Writes what a release writes, for all later ones to read: a signed bundle, frames, a store, states.

    python tests/golden/release.py 1.0

A folder is made once, by the release that it is named after, and never again: tests/formats/test_releases.py
reads all of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import models  # noqa: E402

from tinylora_edge import Ed25519Signer, Ed25519Verifier, Hmac, MicroVector, Policy, load_bundle  # noqa: E402
from tinylora_edge.exporters import ExportSettings, export_gguf  # noqa: E402
from tinylora_edge.formats.signatures import sign_bundle  # noqa: E402
from tinylora_edge.runtime import Clicks, SampledAnswer, load  # noqa: E402
from tinylora_edge.serve.store import Store  # noqa: E402

SECRET, SEED = bytes(range(32)), bytes(range(1, 33))
"""Of the MAC's key and the signing key: known to all, and so of tests alone."""


def write(folder: Path) -> None:
    """Write the folder of a release."""
    mac, signer = Hmac(SECRET), Ed25519Signer(SEED)
    public = Ed25519Verifier(signer.public_key)
    folder.mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        gguf = models.write_gguf(
            models.tiny_model("llama", hidden=32, blocks=2), Path(temporary, "tiny.gguf")
        )
        export_gguf(gguf, folder / "bundle", settings=ExportSettings(outputs=8))
    sign_bundle(folder / "bundle", signer)
    bases = load_bundle(folder / "bundle").bases
    kinds: dict[str, tuple[Any, str, Any, date | None]] = {
        "crc.bin": (bases.basis(numbers=13), "bf16", "crc32", None),
        "mac.bin": (bases.basis(rank=2), "int8", mac, None),
        "signed.bin": (bases.basis(rank=8), "q4", signer, None),
        "dated.bin": (bases.basis(rank=(4, 2)), "q2", mac, date(2199, 12, 31)),
        "fp32.bin": (bases.basis(numbers=13), "fp32", signer, None),
        "fp16.bin": (bases.basis(rank=8), "fp16", "crc32", None),
    }
    frames = {}
    for number, (name, (basis, dtype, tag, until)) in enumerate(kinds.items(), 1):
        made = MicroVector.random(basis, 0.5, seed=number, dtype=dtype)
        made = MicroVector(made.values, dtype, sequence=number, basis=basis.digest, entries=basis.entries)
        (folder / name).write_bytes(made.to_bytes(basis, tag, user="alice", until=until))
        found = Policy(keys=[] if tag == "crc32" else [mac, public]).check(
            (folder / name).read_bytes(), bases, user="alice"
        )
        frames[name] = {"basis": basis.digest, "dtype": dtype, "sequence": number, "signed": tag != "crc32"}
        frames[name] |= {"until": until and until.isoformat(), "values": found.values.tolist()}
    store = Store(folder / "store.db", bases)
    stored = (folder / "signed.bin").read_bytes()
    store.put("alice", stored, Policy(keys=[public]))
    store.close()
    policy = Policy(keys=[mac], state=folder / "policy.state")
    with policy.admit((folder / "mac.bin").read_bytes(), bases, user="alice"):
        pass
    with load(folder / "bundle", n_ctx=64, n_threads=1, verbose=False) as llm:
        answer = SampledAnswer(tuple(llm.encode("hello")[0]), (*b"abc",), None)
        learned = Clicks(llm, n_threads=1).tell(folder / "clicks.state", answer, 1)
    for lock in folder.rglob("*.lock"):
        lock.unlink()
    about = {"factors": bases.factors.digest, "frames": frames, "clicked": learned.values.tolist()}
    (folder / "expected.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    write(Path(__file__).parent / sys.argv[1])
