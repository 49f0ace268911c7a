"""The factors of the real model, and the learned directions that are shipped for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import models
import numpy as np
import pytest
import smollm2

from tinylora_edge import Factors, ProjectionsLeftOutWarning, load_bundle
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.exporters.export import SHIPPED, find_shipped

VALUES = 1e-4  # relative, of the singular values
RESIDUAL = 1e-3  # two-sided
ROUNDING = 2**-11  # of float16, relative
RANK = 8


@pytest.fixture(scope="module")
def plain(smollm2_bundle: Path) -> Factors:
    return load_bundle(smollm2_bundle).factors


@pytest.mark.parametrize(("name", "targets"), [("smollm2-135m", ()), ("smollm2-135m-light", ("light",))])
def test_an_export_of_the_real_model_takes_them(smollm2_gguf, smollm2_bundle, tmp_path, name, targets):
    bases = load_bundle(smollm2_bundle).bases
    if targets:
        settings = ExportSettings(targets=targets)
        bases = export_gguf(smollm2_gguf, tmp_path / "bundle", settings=settings).bases
    (found,) = bases.projections
    with np.load(SHIPPED / f"{name}.npz") as file:
        assert np.array_equal(found.stored, file["p"])
        assert np.allclose(found.prior.covariance, file["prior_covariance"], rtol=1e-6)
    assert bases.basis(numbers=13).projection is found


@pytest.mark.parametrize("change", ["sign", "swap", "module"])
def test_other_factors_are_others_and_it_is_said(plain: Factors, change: str) -> None:
    a, b = list(plain.a), list(plain.b)
    if change == "sign":
        a[7] = a[7] * np.array([1, -1, *[1] * 6], np.float16)[:, None]
    elif change == "swap":
        a[7] = a[7][::-1]
    else:
        b[7] = b[14]
        assert b[7].shape == plain.b[7].shape
    with pytest.warns(ProjectionsLeftOutWarning, match=r"smollm2-135m\.npz are left out.*at most 0\.02"):
        assert find_shipped(dataclasses.replace(plain, a=tuple(a), b=tuple(b))) is None


@pytest.mark.slow
def test_singular_values_and_residuals(plain, smollm2_gguf):
    """Of every module, against a full decomposition in float64."""
    reader = gguf.GGUFReader(smollm2.requantized(smollm2_gguf, smollm2.ALL_F32))
    weights = {tensor.name: tensor.data for tensor in reader.tensors}
    errors, residuals = {}, {}
    for module, a, b in zip(plain.modules, plain.a, plain.b, strict=True):
        w, s = weights[module], np.linalg.norm(b.astype(np.float64), axis=0)  # B = U S
        u, v = b / s, a.astype(np.float64).T
        assert np.abs(v.T @ v - np.eye(RANK)).max() < ROUNDING
        assert np.abs(u.T @ u - np.eye(RANK)).max() < 2 * RESIDUAL
        assert all(column[np.abs(column).argmax()] > 0 for column in v.T)
        errors[module] = np.abs(s / models.top_singular_values(w, RANK) - 1).max()
        left, right = w.astype(np.float64) @ v - u * s, w.T.astype(np.float64) @ u - v * s
        residuals[module] = max((np.linalg.norm(part, axis=0) / s).max() for part in (left, right))
    for values, bound in ((errors, VALUES + ROUNDING), (residuals, RESIDUAL + ROUNDING)):
        assert {module: value for module, value in values.items() if value > bound} == {}
