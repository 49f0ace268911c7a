"""The factors of the real model, every module, against a full decomposition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import smollm2

from tinylora_edge import load_basis

VALUES = 1e-4  # relative, of both singular values
RESIDUAL = 1e-3  # two-sided


@pytest.fixture(scope="module")
def basis(smollm2_bundle):
    return load_basis(smollm2_bundle / "basis.gguf")


def test_singular_values_and_residuals(basis, smollm2_gguf, record_property):
    exact, weights = smollm2.top_singular_values(smollm2_gguf), smollm2.weights(smollm2_gguf)
    errors, residuals, gaps = {}, {}, {}
    for module, a, b in zip(basis.modules, basis.a, basis.b, strict=True):
        w, s = weights[module], np.linalg.norm(b.astype(np.float64), axis=0)  # B = U S
        u, v = b / s, a.astype(np.float64).T
        assert np.abs(v.T @ v - np.eye(2)).max() < 1e-5
        assert np.abs(u.T @ u - np.eye(2)).max() < 1e-5
        assert all(column[np.abs(column).argmax()] > 0 for column in v.T)
        errors[module] = np.abs(s / exact[module][:2] - 1).max()
        left, right = w.astype(np.float64) @ v - u * s, w.T.astype(np.float64) @ u - v * s
        residuals[module] = max((np.linalg.norm(part, axis=0) / s).max() for part in (left, right))
        gaps[module] = exact[module][1] / exact[module][2]
    for name, values, bound in (("value", errors, VALUES), ("residual", residuals, RESIDUAL)):
        worst = max(values, key=values.get)
        measured = f"worst {name}: {values[worst]:.4g} in {worst}, where s2/s3 is {gaps[worst]:.4f}"
        record_property(name, measured)
        print(measured)
        assert {module: value for module, value in values.items() if value > bound} == {}
    assert gaps["blk.17.attn_v.weight"] < 1.002  # the hardest are among them
    assert sum(gap < 1.05 for gap in gaps.values()) > 20
