"""The constructions that `ranks.py` compares: each finds directions that are there."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS"):  # importing sets them; this takes them back
        monkeypatch.setenv(name, "1")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("ranks")


def test_constructions_find_the_directions_that_behaviours_share(ranks: ModuleType) -> None:
    rng = np.random.default_rng(0)
    count, size = ranks.COUNT, 100
    shared = np.linalg.qr(rng.normal(size=(size, count)))[0].T
    steps = rng.normal(size=(60, count)) @ shared
    one, other = (steps + 0.03 * rng.normal(size=steps.shape) for _ in range(2))
    families = np.array([f"family {i % 9}" for i in range(len(steps))])
    for name, construct in ranks.CONSTRUCTIONS.items():
        axes = construct(one, other, families)
        assert axes.shape == (count, size), name
        held = np.linalg.norm(np.linalg.qr(axes.T)[0].T @ shared.T) ** 2 / count
        assert held < 0.2 if name.startswith("random") else held > 0.95, name


def test_any_number_of_behaviours_has_all_families(ranks: ModuleType) -> None:
    whole = ranks.chosen("learn", None)
    families = {each.family for each in whole}
    few = ranks.chosen("learn", len(families))
    assert {each.family for each in few} == families
    assert few == whole[: len(few)]
    assert not any(each.near for each in whole)


def test_what_is_compared_is_paired(ranks: ModuleType) -> None:
    own, today = {"folds": np.array([0.3, 0.5, 0.4])}, {"folds": np.array([0.2, 0.4, 0.3])}
    found = ranks.compare(own, today, {"folds": 0.5})["folds"]
    assert found["nats"] == pytest.approx(0.4)
    assert found["share"] == pytest.approx(0.8)
    assert found["more"] == pytest.approx(0.2)
    assert found["standard_error"] == pytest.approx(0.0, abs=1e-12)
