"""A device that restarts: what it accepted once it remembers, on the engine that it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shipped import SIGNER

from tinylora_edge import Ed25519Verifier, MicroVector, Policy, load_bundle, runtime
from tinylora_edge.errors import RollbackError

OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_threads": 1, "n_threads_batch": 1, "verbose": False}


def frame(bundle: Path, sequence: int) -> bytes:
    """Of a user who grows: 13 numbers at first, and from sequence 5 on all entries of rank 4."""
    bundled = load_bundle(bundle)
    basis = bundled.basis(rank=4) if sequence >= 5 else bundled.basis(numbers=13)
    drawn = MicroVector.random(basis, 0.3, seed=sequence)
    return MicroVector(drawn.values, "bf16", sequence).to_bytes(basis, SIGNER)


def policy(path: Path) -> Policy:
    return Policy(keys=[Ed25519Verifier(SIGNER.public_key)], state=path)


def test_a_vector_that_was_replaced_is_refused_after_a_restart(tiny_bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with runtime.load(tiny_bundle, frame(tiny_bundle, 4), policy=policy(state), **OPTIONS) as first:
        first.swap(frame(tiny_bundle, 5))
    with pytest.raises(RollbackError):
        runtime.load(tiny_bundle, frame(tiny_bundle, 4), policy=policy(state), **OPTIONS)
    with runtime.load(tiny_bundle, frame(tiny_bundle, 5), policy=policy(state), **OPTIONS) as again:
        before, written = again.vector, state.read_bytes()
        with pytest.raises(RollbackError):
            again.swap(frame(tiny_bundle, 3))
        assert again.vector is before
        assert state.read_bytes() == written
        assert again.swap(frame(tiny_bundle, 6)).sequence == 6


def test_a_state_that_cannot_be_written_leaves_the_model_as_it_was(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    rules = policy(tmp_path / "state" / "seen")
    with runtime.load(tiny_bundle, frame(tiny_bundle, 1), policy=rules, **OPTIONS) as llm:
        before = llm.vector
        (tmp_path / "state").rename(tmp_path / "away")
        with pytest.raises(OSError, match="seen"):
            llm.swap(frame(tiny_bundle, 2))
        assert llm.vector == before
        (tmp_path / "state").mkdir()
        assert llm.swap(frame(tiny_bundle, 2)).sequence == 2
