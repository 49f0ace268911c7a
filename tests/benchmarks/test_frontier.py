"""The frontier of few modules: what it reads, what it chooses, and what it calls an overhead."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from tinylora_edge import load_basis
from tinylora_edge.modules import select

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def frontier(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS"):  # importing sets them; this takes them back
        monkeypatch.setenv(name, "1")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("frontier")


def test_choices_are_those_whose_shares_were_measured(frontier: ModuleType, smollm2_bundle: Path) -> None:
    modules = load_basis(smollm2_bundle / "basis.gguf").modules
    counts = {name: len(select(modules, targets)) for name, targets in frontier.CHOICES.items()}
    assert counts["all"] == len(modules) == 210
    assert counts["every second block"] == 105
    assert counts["every third block"] == 70
    assert counts["ffn_gate, ffn_up, ffn_down"] + counts["attention"] == 210
    shares = frontier.shares()
    assert shares.keys() == counts.keys()
    assert shares.pop("all") == 1.0
    kept = {"attention", "attention and ffn_down", "light"}
    assert all(share >= frontier.KEPT for name, share in shares.items() if name in kept)
    assert all(0 < share < frontier.KEPT for name, share in shares.items() if name not in kept)


def test_an_overhead_is_of_a_round_and_of_all_loads(frontier: ModuleType) -> None:
    """A round in which everything takes twice as long changes nothing, nor does one lucky load."""
    usual = {"base": [1.0, 2.0, 1.0, 1.0], "all": [1.1, 2.2, 1.1, 1.3]}
    lucky = {"base": [1.0] * 4, "all": [0.9] * 4}
    found = frontier.overheads([usual, lucky, usual], {"all": "base"})["all"]
    assert found["overhead"] == pytest.approx(0.1)
    assert found["of_each_load"] == pytest.approx([0.1, -0.1, 0.1])
    assert found["rounds"] == 4
