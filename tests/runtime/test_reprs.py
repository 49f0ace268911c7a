"""What a shell or a log shows of things: two lines at most, and no key."""

from __future__ import annotations

import numpy as np

from tinylora_edge import Ed25519Verifier, Hmac, MicroVector, Policy, load_basis
from tinylora_edge.runtime import Tuned
from tinylora_edge.runtime.evaluation import Evaluation

TWO_LINES = 2 * 110


def test_they_fit_two_lines(smollm2_bundle, tiny_bundle, load, tmp_path):
    basis = load_basis(smollm2_bundle / "basis.gguf")
    secret, public = bytes(range(32)), bytes(range(32, 64))
    policy = Policy(
        "mac", keys=[Hmac(secret), Ed25519Verifier(public)], max_norm=1.5, state=tmp_path / "marks"
    )
    vector = MicroVector.random(basis, 0.5, seed=1)
    checked = Policy().check(vector.to_bytes(basis), basis)
    tuned = Tuned(vector, True, 0.1, 0.2, 48, 100, 10_000, 100_000, 299.123456789, "budget")
    evaluation = Evaluation(np.linspace(0, 1, 1000), ["answer"] * 1000)
    with load(tiny_bundle) as llm:
        shown = [repr(thing) for thing in (basis, policy, vector, checked, evaluation, llm, tuned)]
        llm.swap(MicroVector.random(llm.basis, 0.5))
        shown.append(repr(llm))
    shown.append(repr(llm))
    for text in shown:
        assert len(text) <= TWO_LINES
        assert "\n" not in text
    assert secret.hex() not in shown[1]
    assert f"Basis({basis.id}: llama, 210 modules, rank 2, u 1, 13 groups tiled" in shown[0]
    assert shown[1].startswith("Policy('mac', keys=[hmac:")
    assert shown[2].startswith("MicroVector([")
    assert shown[3].startswith("CheckedVector([")
    assert "mean 0.5000" in shown[4]
    assert "None" in shown[5]
    assert "0.1000 -> 0.2000 on 48 prompts" in shown[6]
    assert "MicroVector([" in shown[7]
    assert "closed" in shown[8]
