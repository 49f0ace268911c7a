"""Learned projections that are shipped: which factors they belong to, and that an export takes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tinylora_edge import Basis, BasisError, load_basis
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.exporters.learned import FOLDER, find, read


@pytest.fixture(scope="module")
def plain(smollm2_bundle: Path) -> Basis:
    return load_basis(smollm2_bundle / "basis.gguf")


@pytest.mark.parametrize(("name", "modules"), [("smollm2-135m", 210), ("smollm2-135m-light", 80)])
def test_a_shipped_file_is_small_and_says_how_it_was_learned(name: str, modules: int) -> None:
    path = FOLDER / f"{name}.npz"
    one = read(path)
    assert one.p.shape == (13, modules, 2, 2)
    assert one.p.dtype == np.float32
    assert np.isfinite(one.p).all()
    assert (np.linalg.eigvalsh(one.prior[1].astype(np.float64)) > 0).all()
    assert (one.facts["behaviours"], one.facts["near_tasks"]) == (198, "taken")
    assert path.stat().st_size < 60_000


@pytest.mark.parametrize(("name", "targets"), [("smollm2-135m", ()), ("smollm2-135m-light", ("light",))])
def test_an_export_of_the_real_model_takes_them(
    smollm2_gguf: Path, plain: Basis, tmp_path: Path, name: str, targets: tuple[str, ...]
) -> None:
    one = read(FOLDER / f"{name}.npz")
    settings = ExportSettings(projection="learned", targets=targets)
    basis = export_gguf(smollm2_gguf, tmp_path / "bundle", settings=settings).basis
    assert (basis.projection, basis.u, basis.groups) == ("explicit", 13, 1)
    assert np.array_equal(basis.projections.swapaxes(0, 1), one.p)
    assert np.array_equal(basis.prior_covariance, one.prior[1])
    same = basis.modules == plain.modules  # fingerprints are of the modules that a basis adapts
    assert (basis.base_fingerprints == plain.base_fingerprints) == same == (not targets)


def test_factors_that_differ_in_rounding_are_the_same(plain: Basis) -> None:
    rng = np.random.default_rng(0)

    def shaken(factors: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple((f * (1 + 1e-4 * rng.standard_normal(f.shape))).astype(np.float32) for f in factors)

    halved = dataclasses.replace(plain, a=tuple(f.astype(np.float16) for f in plain.a))
    for other in (dataclasses.replace(plain, a=shaken(plain.a), b=shaken(plain.b)), halved):
        assert find(other) is not None


@pytest.mark.parametrize("change", ["sign", "swap", "module"])
def test_other_factors_are_others(plain: Basis, change: str) -> None:
    a, b = list(plain.a), list(plain.b)
    if change == "sign":
        a[7] = np.array(a[7]) * np.array([[1], [-1]], np.float32)
    elif change == "swap":
        a[7] = np.array(a[7])[::-1]
    else:
        b[7] = np.array(b[14])
        assert b[7].shape == plain.b[7].shape
    assert find(dataclasses.replace(plain, a=tuple(a), b=tuple(b))) is None


def test_what_has_none_gets_a_clear_no(llama_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(BasisError, match=r"no learned projections are shipped for these factors \(llama, "):
        export_gguf(llama_gguf, tmp_path / "learned", settings=ExportSettings(projection="learned"))
    assert not [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_auto_takes_them_where_nothing_is_asked_of_random_ones(
    smollm2_gguf: Path, plain: Basis, llama_gguf: Path, tmp_path: Path
) -> None:
    one = read(FOLDER / "smollm2-135m.npz")
    taken = export_gguf(smollm2_gguf, tmp_path / "a", settings=ExportSettings(projection="auto")).basis
    assert np.array_equal(taken.projections.swapaxes(0, 1), one.p)
    seeded = ExportSettings(projection="auto", seed=7)
    random = export_gguf(smollm2_gguf, tmp_path / "b", settings=seeded).basis
    assert (random.projection, random.seed, random.groups) == (plain.projection, 7, 13)
    other = export_gguf(llama_gguf, tmp_path / "c", settings=ExportSettings(projection="auto")).basis
    assert other.projection == plain.projection


@pytest.mark.parametrize("tied", [{"u": 2}, {"groups": 13}, {"tying": "full"}])
def test_learned_projections_are_not_tied(tied: dict[str, object]) -> None:
    with pytest.raises(BasisError, match="leave these as they are, or take 'random'"):
        ExportSettings(projection="learned", **tied)  # type: ignore[arg-type]
