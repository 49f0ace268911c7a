"""Receipts: the model's own word for what it runs, as a host reads it."""

from __future__ import annotations

import pytest

from tinylora_edge import Ed25519Signer, Ed25519Verifier, Hmac, MicroVector, Policy, VectorError
from tinylora_edge.wire.statements import decode_receipt

SIGNER, DEVICE = Ed25519Signer(b"k" * 32), Hmac(b"d" * 32)
POLICY = {"keys": [Ed25519Verifier(SIGNER.public_key)]}


@pytest.fixture
def llm(load, tiny_bundles):
    """One strategy is enough: what is active is known before either comes in."""
    return load(tiny_bundles["scales"], policy=Policy(**POLICY))


def read(llm, data: bytes, stream: str = "", challenge: bytes = b""):
    return decode_receipt(data, llm.basis.digest, stream, [DEVICE], challenge)


def test_it_names_the_frame_that_is_active(llm):
    assert read(llm, llm.receipt(DEVICE)).names(b""), "the base alone"
    frames = [
        MicroVector.random(llm.basis, 0.5, seed=n, dtype="int8").to_bytes(llm.basis, SIGNER, stream="alice")
        for n in range(2)
    ]
    llm.swap(frames[0], stream="alice")
    said = read(llm, llm.receipt(DEVICE, challenge=b"now"), "alice", b"now")
    assert (said.sequence, said.names(frames[0]), said.names(frames[1])) == (1, True, False)
    with pytest.raises(VectorError):
        llm.swap(frames[1], stream="alice")
    assert read(llm, llm.receipt(DEVICE), "alice").names(frames[0]), "a refused vector leaves it as it was"
    llm.clear()
    assert read(llm, llm.receipt(DEVICE, stream="alice"), "alice").names(b"")


def test_it_is_of_the_vector_that_load_was_given(load, tiny_bundles, llm):
    data = MicroVector.random(llm.basis, 0.5).to_bytes(llm.basis, SIGNER, stream="bob")
    loaded = load(tiny_bundles["scales"], data, policy=Policy(**POLICY), stream="bob")
    assert read(loaded, loaded.receipt(DEVICE), "bob").names(data)
    own = MicroVector.random(llm.basis, 0.5, seed=3)
    with loaded.using(own), pytest.raises(VectorError, match="MicroVector of this app's own"):
        loaded.receipt(DEVICE)
    assert read(loaded, loaded.receipt(DEVICE), "bob").names(data)
