"""Learned directions that are shipped: which factors they belong to, and that an export takes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tinylora_edge import Factors, ProjectionsLeftOutWarning, load_bundle
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.exporters.export import SHIPPED, find_shipped


@pytest.fixture(scope="module")
def plain(smollm2_bundle: Path) -> Factors:
    return load_bundle(smollm2_bundle).factors


@pytest.mark.parametrize(("name", "targets"), [("smollm2-135m", ()), ("smollm2-135m-light", ("light",))])
def test_an_export_of_the_real_model_takes_them(
    smollm2_gguf: Path, smollm2_bundle: Path, tmp_path: Path, name: str, targets: tuple[str, ...]
) -> None:
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
