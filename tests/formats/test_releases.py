"""What earlier releases wrote is read: tests/golden has a folder for each, which is never changed."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

from tinylora_edge import Ed25519Signer, Hmac, Policy, RollbackError, load_bundle, runtime
from tinylora_edge.formats.signatures import check_bundle
from tinylora_edge.serve.store import Store
from tinylora_edge.wire.tags import Ed25519Verifier

RELEASES = sorted(path.parent for path in support.GOLDEN.glob("*/expected.json"))
MAC, PUBLIC = Hmac(bytes(range(32))), Ed25519Verifier(Ed25519Signer(bytes(range(1, 33))).public_key)


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of what a release wrote, and what is in it."""
    shutil.copytree(request.param, tmp_path / "release")
    return tmp_path / "release", json.loads((request.param / "expected.json").read_text())


def test_there_is_one() -> None:
    assert RELEASES


def test_its_bundle_and_frames_are_read(release: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = release
    bundle = load_bundle(folder / "bundle")
    check_bundle(bundle, [PUBLIC])
    bundle.check_base()
    bases = bundle.bases
    assert bases.factors.digest == expected["factors"]
    for name, frame in expected["frames"].items():
        policy = Policy(keys=[MAC, PUBLIC] if frame["signed"] else [])
        found = policy.check((folder / name).read_bytes(), bases, user="alice")
        assert found.values.tolist() == frame["values"], name
        assert (bases.of(found).digest, found.dtype) == (frame["basis"], frame["dtype"])
        until = frame["until"] and date.fromisoformat(frame["until"])
        assert (found.sequence, found.until) == (frame["sequence"], until)


def test_its_store_and_states_are_read(release: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = release
    bases = load_bundle(folder / "bundle").bases
    frames = {name: (folder / name).read_bytes() for name in expected["frames"]}
    store = Store(folder / "store.db", bases)
    try:
        stored, policy = store.get("alice"), Policy(keys=[MAC, PUBLIC])
        assert stored is not None
        assert (stored.frame, stored.sequence) == (frames["signed.bin"], 3)
        admitted = store.admitted("alice", policy)
        assert admitted.values.tolist() == expected["frames"]["signed.bin"]["values"]
    finally:
        store.close()
    policy = Policy(keys=[MAC], state=folder / "policy.state")
    assert policy.check(frames["mac.bin"], bases, user="alice").sequence == 2
    older = policy.check(frames["dated.bin"], bases, user="alice")
    policy.record(older)
    with pytest.raises(RollbackError):
        policy.check(frames["mac.bin"], bases, user="alice")


def test_its_clicks_go_on(release: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = release
    with runtime.load(folder / "bundle", n_ctx=64, n_threads=1, verbose=False) as llm:
        found = runtime.Clicks(llm, n_threads=1).vector(folder / "clicks.state")
    assert found.sequence == 1
    np.testing.assert_allclose(found.values, expected["clicked"], rtol=1e-4, atol=1e-6)
